// The least that C++ can do: an autograd Function around PyTorch's forward and our two kernels, nothing checked.

#include <torch/extension.h>

namespace {

using Pack = void (*)(int, const void*, uint8_t*, int64_t, int64_t, uint32_t, uint32_t, int);
using Backward = void (*)(int, const void*, const void*, const uint8_t*, void*, int64_t, int64_t, const void*, int);

struct Kernels {
    Pack pack;
    Backward backward;
    const void* decoder;
    uint32_t first, span;
} kernels;

constexpr int FLOAT32 = 0;  // as in csrc/optiacts.h

struct SiLU : torch::autograd::Function<SiLU> {
    static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x) {
        const int64_t columns = x.size(-1), rows = x.numel() / columns;
        const at::Tensor y = at::silu(x), bits = at::empty({rows, (columns + 7) / 8}, x.options().dtype(at::kByte));
        kernels.pack(FLOAT32, x.data_ptr(), bits.data_ptr<uint8_t>(), rows, columns, kernels.first, kernels.span, 1);
        ctx->save_for_backward({y, bits});
        return y;
    }
    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                   const torch::autograd::variable_list& grads) {
        const auto saved = ctx->get_saved_variables();
        const at::Tensor grad = grads[0].contiguous(), out = at::empty_like(grad);
        const int64_t columns = grad.size(-1), rows = grad.numel() / columns;
        kernels.backward(FLOAT32, grad.data_ptr(), saved[0].data_ptr(), saved[1].data_ptr<uint8_t>(), out.data_ptr(),
                         rows, columns, kernels.decoder, 1);
        return {out};
    }
};

void use(int64_t pack, int64_t backward, int64_t decoder, int64_t first, int64_t span) {
    kernels = {reinterpret_cast<Pack>(pack), reinterpret_cast<Backward>(backward),
               reinterpret_cast<const void*>(decoder), uint32_t(first), uint32_t(span)};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    module.def("use", &use);
    module.def("silu", [](const at::Tensor& x) { return SiLU::apply(x); });
}
