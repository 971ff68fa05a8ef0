// The Python module: what this binary is, and the launch plan. pybind11 only; no torch header is included here, and the
// operators in ops.cpp register themselves with torch when the module is loaded.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../plan.h"
#include "../project.h"

#ifdef LEAKYPAR_WITH_CUDA
#include <cuda_runtime_api.h>
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

py::tuple make_plan(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, std::int64_t element_bytes,
                    std::int64_t multiprocessors, std::int64_t cache_bytes, std::int64_t shared_bytes_of_block,
                    std::int64_t shared_bytes_of_multiprocessor, bool can_fuse) {
  const leakypar::Problem problem = {T, N, C, H, element_bytes};
  const leakypar::DeviceFacts device = {multiprocessors, cache_bytes, shared_bytes_of_block,
                                        shared_bytes_of_multiprocessor};
  const leakypar::Plan plan = leakypar::make_plan(problem, device);
  const leakypar::ProjectPlan tiles = leakypar::make_project_plan(problem, device);
  if (!can_fuse || !tiles.fused) {
    return py::make_tuple(name(plan.scan_forward), name(plan.scan_backward), plan.chunk_steps,
                          plan.backward_chunk_steps, py::none());
  }
  return py::make_tuple(
      "fused", name(plan.scan_backward), T, plan.backward_chunk_steps,
      py::make_tuple(tiles.columns(), tiles.batch_rows, tiles.stages, tiles.resident, tiles.blocks_per_group));
}

py::dict make_project_plan(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, std::int64_t element_bytes,
                           std::int64_t multiprocessors, std::int64_t shared_bytes_of_block,
                           std::int64_t shared_bytes_of_multiprocessor) {
  const leakypar::Problem problem = {T, N, C, H, element_bytes};
  const leakypar::DeviceFacts device = {multiprocessors, 0, shared_bytes_of_block, shared_bytes_of_multiprocessor};
  const leakypar::ProjectPlan plan = leakypar::make_project_plan(problem, device);
  py::dict read;
  if (plan.stages == 0) return read;
  const std::int64_t groups = plan.groups(N, H);
  read["fused"] = plan.fused;
  read["columns"] = plan.columns();
  read["batch_rows"] = plan.batch_rows;
  read["steps"] = plan.steps();
  read["stages"] = plan.stages;
  read["resident"] = plan.resident;
  read["groups"] = groups;
  read["blocks_per_group"] = plan.blocks_per_group;
  read["tiles"] = groups * plan.time_tiles(T);
  read["shared_bytes"] = plan.shared_bytes(C, element_bytes);
  read["blocks_per_multiprocessor"] = leakypar::resident_blocks(plan, problem, device);
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
  m.attr("cpu_facts") = py::make_tuple(leakypar::cpu_facts.multiprocessors, leakypar::cpu_facts.cache_bytes);
  m.def("make_plan", &make_plan, py::kw_only(), py::arg("T"), py::arg("N"), py::arg("C"), py::arg("H"),
        py::arg("element_bytes"), py::arg("multiprocessors"), py::arg("cache_bytes"), py::arg("shared_bytes_of_block"),
        py::arg("shared_bytes_of_multiprocessor"), py::arg("can_fuse"),
        "The launch plan of csrc/plan.h: (scan_forward, scan_backward, chunk_steps, backward_chunk_steps, "
        "tiles), the tiles of csrc/project.h (columns, batch_rows, stages, resident, blocks_per_group) or None.");
  m.def("make_project_plan", &make_project_plan, py::kw_only(), py::arg("T"), py::arg("N"), py::arg("C"), py::arg("H"),
        py::arg("element_bytes"), py::arg("multiprocessors"), py::arg("shared_bytes_of_block"),
        py::arg("shared_bytes_of_multiprocessor"),
        "The tiles of csrc/project.h, as a dict; empty where the device has no room for them.");
}
