/* In place of src/dev/cuda in a program that was built without CUDA. */
#include "dev/dev.h"

int kk_dev_open_cuda(int index, struct kk_dev **out, struct kk_err *err)
{
    *out = NULL;
    return kk_fail(err, KK_EUNSUPPORTED,
                   "cuda:%d: this program was built without CUDA ('make CUDA=1' makes one with it)",
                   index);
}
