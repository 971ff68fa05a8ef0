// What a network that torch.export and AOTInductor packaged gives for an input of ones, in a program without Python:
//   run_package <leakypar's extension> <package> <T> <N> <C>
#include <ATen/ops/ones.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int, char** argv) {
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {  // registers the operators
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader network(argv[2]);
  const at::Tensor x = at::ones({std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5])});
  const at::Tensor spikes = network.run({x}).at(0).contiguous();
  const auto* values = static_cast<const float*>(spikes.data_ptr());
  for (std::int64_t i = 0; i < spikes.numel(); ++i) std::printf("%g ", values[i]);
}
