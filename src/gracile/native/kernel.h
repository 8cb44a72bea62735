// What the compiled kernels have in common. Nothing here depends on an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace gracile {

// A layer, packed: weights are laid out once, for one size of map and one instruction set.
struct Kernel {
    virtual ~Kernel() = default;
    // y = relu(W x + b + add); `add` may be null or y. True if x holds numbers that are not finite:
    // then y may lack the NaN that a dense engine makes of 0 times infinity.
    virtual bool run(const float* x, const float* add, float* y, std::int64_t batch, int threads) const = 0;
    // The weights with their zeros, as large as what was packed.
    virtual void unpack(float* weight) const = 0;
    std::size_t bytes = 0;  // of packed weights and positions
    std::size_t slots = 0;  // multiplications stored, padding included
    std::string tiling;     // how the work is cut, to be read by people
};

// A convolution to be packed; a matrix is one with a kernel of 1x1.
struct Convolution {
    const float* weight;  // (outputs, inputs, kernel[0], kernel[1]), inputs of one group
    const float* bias;    // (outputs) or null
    int outputs, inputs, groups;
    int size[2], kernel[2], stride[2], padding[2], dilation[2];
    bool relu;
    int rows, channels;  // of a tile and of a block of channels; 0: chosen here
};

// Windows of a plane. Numbers of the padding are less than any other; every window holds one that is not.
struct Pool {
    int size[2], kernel[2], stride[2], padding[2], out[2];
};

// Memory of the calling thread, 64-byte aligned. It only grows, and the next call may return the same.
float* scratch(std::size_t floats);

// Run task(context, i) for i < tasks on up to `threads` threads, this one among them; returns when all are done.
void parallel(int tasks, int threads, void (*task)(void* context, int i), void* context);

#define GRACILE_KERNELS(set)                                              \
    namespace set {                                                       \
    std::unique_ptr<Kernel> sparse_convolution(const Convolution&);       \
    std::unique_ptr<Kernel> block_convolution(const Convolution&);        \
    std::unique_ptr<Kernel> sparse_matrix(const Convolution&);            \
    std::unique_ptr<Kernel> block_matrix(const Convolution&);             \
    void max_pool(const Pool&, const float* x, float* y, std::int64_t planes, int threads); \
    void mean_planes(const float* x, float* y, std::int64_t planes, std::int64_t pixels); \
    void lstm_cells(const float* gates, float* c, float* h, std::int64_t batch, int hidden); \
    double peak(std::int64_t steps);                                      \
    }
#if defined(__x86_64__)
GRACILE_KERNELS(avx512)
GRACILE_KERNELS(avx2)
#endif
GRACILE_KERNELS(portable)

}  // namespace gracile
