// The calls of cuBLAS that blas.py makes, on the CPU: columns first, sums in float or double, as cublas_api.h says.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {
struct Handle {
    void* stream;
    void* workspace;
    std::size_t size;
};
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

double read(const void* from, int type, std::ptrdiff_t i, bool tf32) {
    if (type == R_64F) return static_cast<const double*>(from)[i];
    if (type == R_16F) return __half2float(static_cast<const __half*>(from)[i]);
    if (type == R_16BF) return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]);
    float value = static_cast<const float*>(from)[i];
    if (tf32 && std::isfinite(value)) {  // to nearest, ties away from zero, 10 bits of mantissa
        std::uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits = (bits + 0x1000u) & ~0x1fffu;
        std::memcpy(&value, &bits, 4);
    }
    return value;
}
void write(void* to, int type, std::ptrdiff_t i, double value) {
    if (type == R_64F) static_cast<double*>(to)[i] = value;
    if (type == R_32F) static_cast<float*>(to)[i] = static_cast<float>(value);
    if (type == R_16F) static_cast<__half*>(to)[i] = __float2half_rn(static_cast<float>(value));
    if (type == R_16BF) static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(static_cast<float>(value));
}

template <class Sum>
void multiply(bool transpose_a, bool transpose_b, int m, int n, int k, Sum alpha, const void* a, int a_type, int lda,
              std::ptrdiff_t a_from, const void* b, int b_type, int ldb, std::ptrdiff_t b_from, Sum beta, void* c,
              int c_type, int ldc, std::ptrdiff_t c_from, bool tf32) {
    for (int column = 0; column < n; ++column)
        for (int row = 0; row < m; ++row) {
            Sum sum = 0;
            for (std::ptrdiff_t i = 0; i < k; ++i)
                sum += static_cast<Sum>(read(a, a_type, a_from + (transpose_a ? row * std::ptrdiff_t(lda) + i : i * lda + row), tf32)) *
                       static_cast<Sum>(read(b, b_type, b_from + (transpose_b ? i * ldb + column : column * std::ptrdiff_t(ldb) + i), tf32));
            const std::ptrdiff_t at = c_from + column * std::ptrdiff_t(ldc) + row;
            write(c, c_type, at, alpha * sum + (beta == 0 ? 0 : beta * static_cast<Sum>(read(c, c_type, at, false))));
        }
}
}  // namespace

extern "C" {
int cublasCreate_v2(Handle** handle) {
    *handle = new Handle{};
    return SUCCESS;
}
int cublasSetMathMode(Handle* handle, int) { return handle == nullptr ? NOT_INITIALIZED : SUCCESS; }
int cublasSetStream_v2(Handle* handle, void* stream) {
    handle->stream = stream;
    handle->workspace = nullptr;  // as in cuBLAS: a workspace must be given anew
    return SUCCESS;
}
int cublasSetWorkspace_v2(Handle* handle, void* workspace, std::size_t size) {
    handle->workspace = workspace;
    handle->size = size;
    return SUCCESS;
}
int cublasGemmStridedBatchedEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                               const void* a, int a_type, int lda, long long a_stride, const void* b, int b_type,
                               int ldb, long long b_stride, const void* beta, void* c, int c_type, int ldc,
                               long long c_stride, int batch, int compute, int) {
    if (handle == nullptr || handle->workspace == nullptr) return NOT_INITIALIZED;
    const int a_rows = transpose_a ? k : m, b_rows = transpose_b ? n : k;
    if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < a_rows || ldb < b_rows || ldc < m) return INVALID_VALUE;
    const bool half = a_type == R_16F || a_type == R_16BF;
    const bool fits = compute == COMPUTE_64F ? a_type == R_64F && c_type == R_64F
                      : compute == COMPUTE_32F ? (half && (c_type == a_type || c_type == R_32F)) || (a_type == R_32F && c_type == R_32F)
                                               : compute == COMPUTE_32F_FAST_TF32 && a_type == R_32F && c_type == R_32F;
    if (a_type != b_type || !fits) return NOT_SUPPORTED;
    for (int i = 0; i < batch; ++i) {
        if (compute == COMPUTE_64F)
            multiply<double>(transpose_a, transpose_b, m, n, k, *static_cast<const double*>(alpha), a, a_type, lda,
                             i * a_stride, b, b_type, ldb, i * b_stride, *static_cast<const double*>(beta), c, c_type,
                             ldc, i * c_stride, false);
        else
            multiply<float>(transpose_a, transpose_b, m, n, k, *static_cast<const float*>(alpha), a, a_type, lda,
                            i * a_stride, b, b_type, ldb, i * b_stride, *static_cast<const float*>(beta), c, c_type,
                            ldc, i * c_stride, compute == COMPUTE_32F_FAST_TF32);
    }
    return SUCCESS;
}
}
