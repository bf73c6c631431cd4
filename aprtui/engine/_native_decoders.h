/* The block decoders, compiled once for each instruction set that _native.c includes them for.
 *
 * TARGET is the function attribute that chooses the instructions, NAME(x) the function's name under
 * it. Each function decodes n blocks of one type (layouts: ggml's block_q4_0 and so on; APR_Q4:
 * docs/apr-format.md) into float32 values, with the operations of ggml's dequantize_row_* in their
 * order, each rounded: products and sums are never fused (-ffp-contract=off).
 */

/* Values 0..15 of 16 bytes' low or high nibbles. */
#define LOW(q, l) ((int)((q)[l] & 0x0F))
#define HIGH(q, l) ((int)((q)[l] >> 4))

static TARGET void NAME(q4_0)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 18, out += 32) {
        const float d = half(in);
        const uint8_t *q = in + 2;
        for (int l = 0; l < 16; l++) out[l] = (float)(LOW(q, l) - 8) * d;
        for (int l = 0; l < 16; l++) out[16 + l] = (float)(HIGH(q, l) - 8) * d;
    }
}

static TARGET void NAME(q4_1)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 20, out += 32) {
        const float d = half(in), m = half(in + 2);
        const uint8_t *q = in + 4;
        for (int l = 0; l < 16; l++) out[l] = (float)LOW(q, l) * d + m;
        for (int l = 0; l < 16; l++) out[16 + l] = (float)HIGH(q, l) * d + m;
    }
}

static TARGET void NAME(q5_0)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 22, out += 32) {
        const float d = half(in);
        const uint32_t fifth = word(in + 2);
        const uint8_t *q = in + 6;
        for (int l = 0; l < 16; l++)
            out[l] = (float)((LOW(q, l) | (int)(fifth >> l & 1) << 4) - 16) * d;
        for (int l = 0; l < 16; l++)
            out[16 + l] = (float)((HIGH(q, l) | (int)(fifth >> (16 + l) & 1) << 4) - 16) * d;
    }
}

static TARGET void NAME(q5_1)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 24, out += 32) {
        const float d = half(in), m = half(in + 2);
        const uint32_t fifth = word(in + 4);
        const uint8_t *q = in + 8;
        for (int l = 0; l < 16; l++)
            out[l] = (float)(LOW(q, l) | (int)(fifth >> l & 1) << 4) * d + m;
        for (int l = 0; l < 16; l++)
            out[16 + l] = (float)(HIGH(q, l) | (int)(fifth >> (16 + l) & 1) << 4) * d + m;
    }
}

static TARGET void NAME(q8_0)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 34, out += 32) {
        const float d = half(in);
        const int8_t *q = (const int8_t *)(in + 2);
        for (int l = 0; l < 32; l++) out[l] = (float)q[l] * d;
    }
}

static TARGET void NAME(q2_k)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 84) {
        const float d = half(in + 80), dmin = half(in + 82);
        const uint8_t *scales = in, *q = in + 16;
        for (int part = 0; part < 2; part++, q += 32)
            for (int shift = 0; shift < 8; shift += 2)
                for (int side = 0; side < 2; side++, scales++, out += 16) {
                    const float scale = d * (float)(*scales & 0x0F);
                    const float minimum = dmin * (float)(*scales >> 4);
                    for (int l = 0; l < 16; l++)
                        out[l] = scale * (float)(q[16 * side + l] >> shift & 3) - minimum;
                }
    }
}

static TARGET void NAME(q3_k)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 110) {
        const float d = half(in + 108);
        const uint8_t *high = in, *q = in + 32, *packed = in + 96;
        int which = 0;
        for (int part = 0; part < 2; part++, q += 32)
            for (int shift = 0; shift < 8; shift += 2)
                for (int side = 0; side < 2; side++, which++, out += 16) {
                    const int low = packed[which % 8] >> (which / 8 * 4) & 0x0F;
                    const int top = packed[8 + which % 4] >> (which / 4 * 2) & 3;
                    const float scale = d * (float)((low | top << 4) - 32);
                    const int bit = 4 * part + shift / 2;
                    for (int l = 0; l < 16; l++) {
                        const int third = (high[16 * side + l] >> bit & 1) << 2;
                        out[l] = scale * (float)((q[16 * side + l] >> shift & 3) + third - 4);
                    }
                }
    }
}

/* Scale and minimum of the eight sub-blocks of a Q4_K or Q5_K block, six bits each. */
static inline TARGET void NAME(scale_pairs)(const uint8_t *in, float scale[8], float minimum[8])
{
    const float d = half(in), dmin = half(in + 2);
    const uint8_t *packed = in + 4;
    for (int j = 0; j < 4; j++) {
        scale[j] = d * (float)(packed[j] & 63);
        minimum[j] = dmin * (float)(packed[j + 4] & 63);
        scale[j + 4] = d * (float)((packed[j + 8] & 0x0F) | packed[j] >> 6 << 4);
        minimum[j + 4] = dmin * (float)(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
}

static TARGET void NAME(q4_k)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    float scale[8], minimum[8];
    for (size_t block = 0; block < n; block++, in += 144) {
        const uint8_t *q = in + 16;
        NAME(scale_pairs)(in, scale, minimum);
        for (int j = 0; j < 8; j += 2, q += 32, out += 64) {
            for (int l = 0; l < 32; l++) out[l] = scale[j] * (float)LOW(q, l) - minimum[j];
            for (int l = 0; l < 32; l++)
                out[32 + l] = scale[j + 1] * (float)HIGH(q, l) - minimum[j + 1];
        }
    }
}

static TARGET void NAME(q5_k)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    float scale[8], minimum[8];
    for (size_t block = 0; block < n; block++, in += 176) {
        const uint8_t *high = in + 16, *q = in + 48;
        NAME(scale_pairs)(in, scale, minimum);
        for (int j = 0; j < 8; j += 2, q += 32, out += 64) {
            for (int l = 0; l < 32; l++)
                out[l] = scale[j] * (float)(LOW(q, l) | (high[l] >> j & 1) << 4) - minimum[j];
            for (int l = 0; l < 32; l++)
                out[32 + l] = scale[j + 1] * (float)(HIGH(q, l) | (high[l] >> (j + 1) & 1) << 4)
                              - minimum[j + 1];
        }
    }
}

static TARGET void NAME(q6_k)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 210) {
        const float d = half(in + 208);
        const int8_t *scales = (const int8_t *)(in + 192);
        for (int part = 0; part < 2; part++, scales += 8, out += 128)
            for (int side = 0; side < 2; side++) {
                const uint8_t *low = in + 64 * part + 16 * side;
                const uint8_t *high = in + 128 + 32 * part + 16 * side;
                float *to = out + 16 * side;
                const float s0 = d * (float)scales[side], s1 = d * (float)scales[2 + side];
                const float s2 = d * (float)scales[4 + side], s3 = d * (float)scales[6 + side];
                for (int l = 0; l < 16; l++) {
                    const int h = high[l];
                    to[l] = s0 * (float)((LOW(low, l) | (h & 3) << 4) - 32);
                    to[32 + l] = s1 * (float)((LOW(low + 32, l) | (h >> 2 & 3) << 4) - 32);
                    to[64 + l] = s2 * (float)((HIGH(low, l) | (h >> 4 & 3) << 4) - 32);
                    to[96 + l] = s3 * (float)((HIGH(low + 32, l) | (h >> 6) << 4) - 32);
                }
            }
    }
}

static const int8_t NAME(iq4_values)[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                            1,    13,   25,  38,  53,  69,  89,  113};

static inline TARGET void NAME(iq4)(const uint8_t *restrict q, float d, float *restrict out)
{
    for (int l = 0; l < 16; l++) out[l] = d * (float)NAME(iq4_values)[LOW(q, l)];
    for (int l = 0; l < 16; l++) out[16 + l] = d * (float)NAME(iq4_values)[HIGH(q, l)];
}

static TARGET void NAME(iq4_nl)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 18, out += 32)
        NAME(iq4)(in + 2, half(in), out);
}

static TARGET void NAME(iq4_xs)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 136) {
        const float d = half(in);
        const int tops = in[2] | in[3] << 8;
        for (int part = 0; part < 8; part++, out += 32) {
            const int low = in[4 + part / 2] >> (4 * (part % 2)) & 0x0F;
            const int scale = (low | (tops >> (2 * part) & 3) << 4) - 32;
            NAME(iq4)(in + 8 + 16 * part, d * (float)scale, out);
        }
    }
}

static TARGET void NAME(apr_q4)(const uint8_t *restrict in, float *restrict out, size_t n)
{
    for (size_t block = 0; block < n; block++, in += 18, out += 32) {
        const float d = half(in);
        const uint8_t *q = in + 2;
        for (int l = 0; l < 16; l++) {
            out[2 * l] = (float)(LOW(q, l) - 8) * d;
            out[2 * l + 1] = (float)(HIGH(q, l) - 8) * d;
        }
    }
}

static const decoder NAME(decoders)[KINDS] = {
    NAME(q4_0), NAME(q4_1), NAME(q5_0), NAME(q5_1), NAME(q8_0),   NAME(q2_k),   NAME(q3_k),
    NAME(q4_k), NAME(q5_k), NAME(q6_k), NAME(iq4_nl), NAME(iq4_xs), NAME(apr_q4),
};

#undef LOW
#undef HIGH
#undef TARGET
#undef NAME
