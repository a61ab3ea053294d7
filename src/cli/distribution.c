#include "cli/distribution.h"

#include <math.h>

void kk_cli_log_softmax(const float *x, int n, float *y)
{
    float top = x[0];
    double sum = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > top) top = x[i];
    for (int i = 0; i < n; i++) sum += (double)expf(x[i] - top);
    const double all = (double)top + log(sum);
    for (int i = 0; i < n; i++) y[i] = (float)((double)x[i] - all);
}

double kk_cli_kl(const float *log_p, const float *log_q, int n)
{
    double kl = 0;
    for (int i = 0; i < n; i++)
        kl += (double)expf(log_p[i]) * ((double)log_p[i] - (double)log_q[i]);
    return kl;
}
