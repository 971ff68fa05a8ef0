// A CUDA device, as the operators see a device.
#pragma once

#include "cuda_context.h"
#include "products.h"

namespace leakypar {

struct Cuda {
  // Calls body with the element type that products take, and leave u in.
  template <typename Scalar, typename Body>
  static auto dispatch_projected(Body body) {
    return body(std::type_identity<Scalar>());
  }

  // Whether a backward scan may write its gradient over the membrane that it reads: the look-back scan may not, since a warp
  // reads the row before its own, which another warp writes.
  template <typename Scalar, typename Projected>
  static constexpr bool overwrites = false;

  // On a GPU every product is dense.
  struct DenseProducts {
    template <typename Input>
    static bool project(const Tensor&, const Input&, std::int64_t, std::int64_t, const Tensor&) {
      return false;
    }
    template <typename Input>
    static bool add(const Tensor&, const Input&, std::int64_t, std::int64_t) {
      return false;
    }
    static void add_gradient_to(MaybeTensor&, const Tensor&) {}
  };
  template <typename Scalar, typename Projected>
  static DenseProducts products(double) {
    return {};
  }

  // To learn whether x is made of events would be to wait for the device.
  static constexpr bool finds_events = false;

  // x [T, N, C] as events. Where it is none the value is NaN, which nothing here waits for.
  template <typename Scalar>
  static std::optional<Events> pack(const Tensor& x, double) {
    const std::int64_t T = x.size(0), N = x.size(1), C = x.size(2);
    const Events events = {new_event_bits(x), new_empty(x, {1}, dtype_of<Scalar>), C};
    const cudaError_t error = cuda::pack_events<Scalar>(
        {T, N, C, x.stride(0), x.stride(1), static_cast<const Scalar*>(x.data_ptr()),
         static_cast<std::uint8_t*>(events.bits.data_ptr()), static_cast<Scalar*>(events.value.data_ptr())},
        cuda::current_stream(x.get_device_index()));
    check(error, "pack_events", T, N, C);
    return events;
  }

  template <typename Scalar>
  static void unpack(const Tensor& rows, const Tensor& bits, const Events& events) {
    const cudaError_t error = cuda::unpack_events<Scalar>(
        {rows.size(0), events.C, static_cast<const std::uint8_t*>(bits.data_ptr()),
         static_cast<const Scalar*>(events.value.data_ptr()), static_cast<Scalar*>(rows.data_ptr())},
        cuda::current_stream(rows.get_device_index()));
    check(error, "unpack_events", bits.size(0), bits.size(1), events.C);
  }

  static DeviceFacts facts(const Tensor& tensor) { return cuda::device_facts(tensor.get_device_index()); }

  struct Guard : cuda::DeviceGuard {
    explicit Guard(const Tensor& tensor) : cuda::DeviceGuard(tensor.get_device_index()) {}
  };

  static cuda::Operand operand(const Tensor& matrix) {
    const bool as_it_lies = matrix.stride(1) == 1;
    const std::int64_t rows = matrix.size(as_it_lies ? 0 : 1), columns = matrix.size(as_it_lies ? 1 : 0);
    // A single row's stride means nothing, and cuBLAS asks for one of at least the row's length.
    const std::int64_t stride = rows > 1 ? matrix.stride(as_it_lies ? 0 : 1) : columns;
    return {static_cast<const float*>(matrix.data_ptr()), std::max<std::int64_t>(stride, 1), !as_it_lies};
  }

  static Tensor dense(const Tensor& matrix) {
    const bool one_stride_is_unit = matrix.stride(0) == 1 || matrix.stride(1) == 1;
    return one_stride_is_unit ? matrix : torch::stable::contiguous(matrix);
  }

  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate, bool allow_tf32) {
    if (out.scalar_type() != ScalarType::Float) return aten_product(out, a, b);
    if (out.numel() == 0) return;
    const Tensor left = dense(a), right = dense(b);
    cuda::product(static_cast<float*>(out.data_ptr()), operand(left), operand(right), out.size(0), out.size(1),
                  a.size(1), accumulate, allow_tf32);
  }

  // Whether product() can add to what is there.
  template <typename Projected>
  static constexpr bool accumulates = std::is_same_v<Projected, float>;

  static std::int64_t time_tiles(Method method, std::int64_t T) {
    return method == Method::look_back ? backward_tiling.tiles(T) : (T + summed_steps - 1) / summed_steps;
  }

  // Whether project_scan is compiled for elements of this type.
  template <typename Scalar>
  static constexpr bool has_project_scan = !std::is_same_v<Scalar, double>;

  template <typename Scalar>
  static void project_scan(const ProjectScan<Scalar>& args, const ProjectTiles& tiles, const Tensor& like) {
    const Tensor workspace = new_empty(like, {cuda::project_scan_workspace(args, tiles)}, ScalarType::Byte);
    const cudaError_t error =
        cuda::project_scan(args, tiles, workspace.data_ptr(), cuda::current_stream(like.get_device_index()));
    check(error, "project_scan", args.T, args.N, args.H);
  }

  static void check(cudaError_t error, const char* kernel, std::int64_t T, std::int64_t N, std::int64_t H) {
    const bool no_code = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
    const char* remedy = no_code ? " (the kernels were built for compute capability " LEAKYPAR_CUDA_ARCHITECTURES
                                   ": rebuild with TORCH_CUDA_ARCH_LIST set to this device's)"
                                 : "";
    STD_TORCH_CHECK(error == cudaSuccess, "leakypar: launching ", kernel, " for T = ", T, ", N = ", N, ", H = ", H,
                    " failed: ", cudaGetErrorString(error), remedy);
  }

  template <typename Scalar>
  static void scan(const ScanForward<Scalar>& args, Method method, const Tensor& like) {
    const Tensor workspace = new_empty(like, {cuda::scan_forward_workspace(args, method)}, ScalarType::Byte);
    const cudaError_t error =
        cuda::scan_forward(args, method, workspace.data_ptr(), cuda::current_stream(like.get_device_index()));
    check(error, "scan_forward", args.T, args.N, args.H);
  }

  template <typename Scalar>
  static void scan(const ScanBackward<Scalar>& args, Method method, const Tensor& like) {
    const Tensor workspace = new_empty(like, {cuda::scan_backward_workspace(args, method)}, ScalarType::Byte);
    const cudaError_t error =
        cuda::scan_backward(args, method, workspace.data_ptr(), cuda::current_stream(like.get_device_index()));
    check(error, "scan_backward", args.T, args.N, args.H);
  }
};

}  // namespace leakypar
