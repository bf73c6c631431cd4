/* One row compared, compiled once for each instruction set that _row_sums.c includes it for.
 *
 * TARGET is the function attribute that chooses the instructions, NAME(x) the function's name under
 * it.
 */
static TARGET void NAME(row)(const float *x, const float *y, size_t columns, double *sums)
{
    double dd = 0, xx = 0, yy = 0, xd = 0;
    lanes top = {0};
    float most = 0;
    size_t i = 0;
    while (i + LANES <= columns) {
        const size_t end = columns - i > PIECE ? i + PIECE : columns;
        lanes part_dd = {0}, part_xx = {0}, part_yy = {0}, part_xd = {0};
        for (; i + LANES <= end; i += LANES) {
            lanes a, b;
            memcpy(&a, x + i, sizeof a);
            memcpy(&b, y + i, sizeof b);
            const lanes d = b - a;
            part_dd += d * d;
            part_xx += a * a;
            part_yy += b * b;
            part_xd += a * d;
            const lanes size = (lanes)((bits)d & 0x7FFFFFFF);
            const bits larger = size > top;
            top = (lanes)((larger & (bits)size) | (~larger & (bits)top));
        }
        for (int l = 0; l < LANES; l++) {
            dd += part_dd[l];
            xx += part_xx[l];
            yy += part_yy[l];
            xd += part_xd[l];
        }
    }
    for (; i < columns; i++) {
        const float d = y[i] - x[i], size = d < 0 ? -d : d;
        dd += (double)d * d;
        xx += (double)x[i] * x[i];
        yy += (double)y[i] * y[i];
        xd += (double)x[i] * d;
        most = size > most ? size : most;
    }
    for (int l = 0; l < LANES; l++) most = top[l] > most ? top[l] : most;
    sums[0] = dd;
    sums[1] = xx;
    sums[2] = yy;
    sums[3] = xd;
    sums[4] = most;
}
#undef TARGET
#undef NAME
