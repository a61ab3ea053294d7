/* f_theta for tests/data/mini.json: made up numbers of the right shapes. */
#ifndef KK_TINY_F_THETA_H
#define KK_TINY_F_THETA_H

#include <stddef.h>

enum { TINY_F_THETA_MAX = 1 << 16 };

/* f_theta.safetensors into file; returns its length. */
size_t tiny_f_theta(unsigned char file[static TINY_F_THETA_MAX]);

/* f_theta_config.json that goes with it. */
#define TINY_F_THETA_CONFIG                                                                        \
    "{\"format\":\"kakeya-f-theta-1\",\"capture\":\"aux\",\"aux_layer_ids\":[1,2],"                \
    "\"rank\":8,\"aux_norm_eps\":1e-6,\"predicts\":\"raw_projection\",\"hidden_size\":48}"

#endif
