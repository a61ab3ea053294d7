/* The integer dot product from products of bytes added in pairs to 16 bits. Codes below 64 times
 * |q| <= 127 leave room for 8, 4 or 2 pairs before 16 bits overflow; codes of 8 bits are used as
 * signed numbers, |code| <= 128, and go to 32 bits at once. */
#ifndef KK_DEV_CPU_Q_PAIRS_INT_H
#define KK_DEV_CPU_Q_PAIRS_INT_H

/* Sum of (code - 2^shift) * q over 4 n inputs: shift is 0 where there is no offset. minus: that of
 * the sum of q. */
V qi q_dot(const int bits, const int n, const qi *w, const int8_t *q, qi minus, const int shift)
{
    const int room = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    const qi one = QI(set1_epi16)(1);
    if (bits == 8) {
        qi sum = qi_zero();
        UNROLL for (int j = 0; j < n; j++)
        {
            qi pairs = qi_signed_pairs(QI(sub_epi8)(w[j], QI(set1_epi8)(-128)), qi_four(q + 4 * j));
            sum = QI(add_epi32)(sum, QI(madd_epi16)(pairs, one));
        }
        return sum;
    }
    qi sum = shift ? qi_times(minus, shift) : qi_zero();
    qi pairs = one;
    UNROLL for (int j = 0; j < n; j++)
    {
        qi more = QI(maddubs_epi16)(w[j], qi_four(q + 4 * j));
        pairs = j % room ? QI(add_epi16)(pairs, more) : more;
        if (j % room == room - 1) sum = QI(add_epi32)(sum, QI(madd_epi16)(pairs, one));
    }
    return sum;
}

#endif
