/* Distributions over the vocabulary, for measurements. */
#ifndef KK_CLI_DISTRIBUTION_H
#define KK_CLI_DISTRIBUTION_H

/* y[i] = log of the softmax of x[0, n); y may be x */
void kk_cli_log_softmax(const float *x, int n, float *y);

/* KL(p || q) in nats, of logs of probabilities */
double kk_cli_kl(const float *log_p, const float *log_q, int n);

#endif
