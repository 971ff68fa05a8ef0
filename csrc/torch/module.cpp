// The Python module: what this binary is, and the launch plan. pybind11 only; no torch header is included here, and the
// operators in ops.cpp register themselves with torch when the module is loaded.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../cost.h"

#ifdef LEAKYPAR_WITH_CUDA
#include "cuda_context.h"
#endif

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

#ifdef LEAKYPAR_WITH_CUDA
// The toolkit whose runtime is linked in.
py::object cuda_version() {
  return py::str(std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10));
}

constexpr const char* variant = "cuda";
constexpr const char* architectures = LEAKYPAR_CUDA_ARCHITECTURES;
#else
py::object cuda_version() { return py::none(); }

constexpr const char* variant = "cpu";
constexpr const char* architectures = "";
#endif

// TORCH_TARGET_VERSION holds major and minor in its top two bytes.
std::string stable_abi_target() {
  constexpr std::uint64_t target = TORCH_TARGET_VERSION;
  return std::to_string(target >> 56) + "." + std::to_string(target >> 48 & 0xFF);
}

const char* name(leakypar::Scan scan) { return scan == leakypar::Scan::lane ? "lane" : "split"; }

leakypar::DeviceFacts facts_from(const py::kwargs& facts) {
  const auto fact = [&](const char* name) { return facts[name].cast<std::int64_t>(); };
  return {fact("multiprocessors"),
          fact("cache_bytes"),
          fact("shared_bytes_of_block"),
          fact("shared_bytes_of_multiprocessor"),
          fact("clock_khz"),
          fact("bytes_per_second"),
          fact("capability")};
}

py::tuple facts_of(const leakypar::DeviceFacts& device) {
  return py::make_tuple(device.multiprocessors, device.cache_bytes, device.shared_bytes_of_block,
                        device.shared_bytes_of_multiprocessor, device.clock_khz, device.bytes_per_second,
                        device.capability);
}

py::tuple device_facts([[maybe_unused]] int device) {
#ifdef LEAKYPAR_WITH_CUDA
  if (device >= 0) return facts_of(leakypar::cuda::device_facts(device));
#endif
  return facts_of(leakypar::cpu_facts);
}

py::tuple make_plan(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, std::int64_t element_bytes,
                    bool can_fuse, const py::kwargs& facts) {
  const leakypar::Problem problem = {T, N, C, H, element_bytes};
  const leakypar::DeviceFacts device = facts_from(facts);
  const leakypar::Plan plan = leakypar::make_plan(problem, device);
  const leakypar::ProjectPlan tiles = leakypar::make_project_plan(problem, device);
  if (!can_fuse || !leakypar::prefers_fused(problem, device, tiles)) {
    return py::make_tuple(name(plan.scan_forward), name(plan.scan_backward), plan.chunk_steps,
                          plan.backward_chunk_steps, py::none());
  }
  return py::make_tuple(
      "fused", name(plan.scan_backward), T, plan.backward_chunk_steps,
      py::make_tuple(tiles.columns(), tiles.batch_rows, tiles.stages, tiles.resident, tiles.blocks_per_group));
}

py::dict predict(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, std::int64_t element_bytes,
                 const py::kwargs& facts) {
  const leakypar::Problem problem = {T, N, C, H, element_bytes};
  const leakypar::DeviceFacts device = facts_from(facts);
  const leakypar::Cost chunked = leakypar::chunked_cost(problem, device, leakypar::make_plan(problem, device));
  py::dict read;
  read["chunked_us"] = chunked.microseconds;
  read["chunked_bound"] = chunked.bound;
  const leakypar::ProjectPlan tiles = leakypar::make_project_plan(problem, device);
  if (tiles.stages == 0) return read;
  const leakypar::Cost fused = leakypar::fused_cost(problem, device, tiles);
  read["fused_us"] = fused.microseconds;
  read["fused_bound"] = fused.bound;
  read["columns"] = tiles.columns();
  read["batch_rows"] = tiles.batch_rows;
  read["steps"] = tiles.steps();
  read["stages"] = tiles.stages;
  read["resident"] = tiles.resident;
  read["groups"] = tiles.groups(N, H);
  read["blocks_per_group"] = tiles.blocks_per_group;
  read["tiles"] = tiles.groups(N, H) * tiles.time_tiles(T);
  read["shared_bytes"] = tiles.shared_bytes(C, element_bytes);
  read["blocks_per_multiprocessor"] = leakypar::resident_blocks(tiles, problem, device);
  return read;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "leakypar's compiled part: the operators (registered with torch), its build facts and the launch plan.";
  m.attr("variant") = variant;
  m.attr("compiler") = compiler();
  m.attr("cuda_version") = cuda_version();
  m.attr("architectures") = architectures;
  m.attr("stable_abi_target") = stable_abi_target();
  m.def("device_facts", &device_facts, py::arg("device"),
        "The DeviceFacts of a CUDA device, by its index; of a CPU, where that is negative.");
  m.def("make_plan", &make_plan, py::kw_only(), py::arg("T"), py::arg("N"), py::arg("C"), py::arg("H"),
        py::arg("element_bytes"), py::arg("can_fuse"),
        "The launch plan for a device of these facts: (scan_forward, scan_backward, chunk_steps, backward_chunk_steps, "
        "tiles), the tiles of csrc/project.h (columns, batch_rows, stages, resident, blocks_per_group) or None.");
  m.def("predict", &predict, py::kw_only(), py::arg("T"), py::arg("N"), py::arg("C"), py::arg("H"),
        py::arg("element_bytes"),
        "What csrc/cost.h expects of both forwards on a device of these facts, and the tiles of csrc/project.h.");
}
