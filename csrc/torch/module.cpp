// The Python module: what this binary is, and the launch plan. pybind11 only; no torch header is included here, and the
// operators in ops.cpp register themselves with torch when the module is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../plan/measured.h"

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

using Facts = std::array<std::int64_t, 7>;  // in the order of DeviceFacts

leakypar::DeviceFacts device_from(const Facts& facts) {
  return {facts[0], facts[1], facts[2], facts[3], facts[4], facts[5], facts[6]};
}

Facts device_facts([[maybe_unused]] int index) {
  const leakypar::DeviceFacts& device =
#ifdef LEAKYPAR_WITH_CUDA
      index >= 0 ? leakypar::cuda::device_facts(index) :
#endif
                 leakypar::cpu_facts;
  return {device.multiprocessors,
          device.cache_bytes,
          device.shared_bytes_of_block,
          device.shared_bytes_of_multiprocessor,
          device.clock_khz,
          device.bytes_per_second,
          device.capability};
}

leakypar::Precision precision_from(const std::string& name) {
  constexpr const char* names[] = {"float32", "tf32", "float16", "bfloat16", "float64"};  // in the order of Precision
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) throw std::invalid_argument("precision is '" + name + "'");
  return static_cast<leakypar::Precision>(found - std::begin(names));
}

leakypar::Request request_from(const std::optional<std::string>& forward, const std::optional<std::string>& backward,
                               std::optional<std::int64_t> gemm_chunk, std::optional<std::int64_t> backward_gemm_chunk,
                               const std::optional<std::vector<std::int64_t>>& tiles, std::optional<double> event_rate,
                               std::optional<double> backward_event_rate, bool recompute) {
  leakypar::Request request = {};
  if (forward) request.forward = leakypar::method_from(*forward);
  if (backward) request.backward = leakypar::method_from(*backward);
  request.gemm_chunk = gemm_chunk;
  request.backward_gemm_chunk = backward_gemm_chunk;
  if (tiles) request.tiles = leakypar::tiles_from(*tiles);
  request.event_rate = event_rate;
  request.backward_event_rate = backward_event_rate;
  request.recompute = recompute;
  return request;
}

void check_request(const std::optional<std::string>& forward, const std::optional<std::string>& backward,
                   std::optional<std::int64_t> gemm_chunk, std::optional<std::int64_t> backward_gemm_chunk,
                   const std::optional<std::vector<std::int64_t>>& tiles, std::optional<double> event_rate,
                   std::optional<double> backward_event_rate) {
  leakypar::check(
      request_from(forward, backward, gemm_chunk, backward_gemm_chunk, tiles, event_rate, backward_event_rate, false));
}

const char* name(leakypar::Method method) { return leakypar::method_names[static_cast<int>(method)]; }

py::object tuple_from(const std::optional<leakypar::ProjectTiles>& tiles) {
  if (!tiles) return py::none();
  return py::make_tuple(tiles->columns(), tiles->batch_rows, tiles->stages, tiles->weights_resident,
                        tiles->time_blocks);
}

py::tuple make_plan(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, const std::string& precision,
                    const Facts& facts, const std::optional<std::string>& forward,
                    const std::optional<std::string>& backward, std::optional<std::int64_t> gemm_chunk,
                    std::optional<std::int64_t> backward_gemm_chunk,
                    const std::optional<std::vector<std::int64_t>>& tiles, std::optional<double> event_rate,
                    std::optional<double> backward_event_rate, bool recompute, bool measured) {
  const auto plan = (measured ? leakypar::plan_for : leakypar::make_plan)(
      {T, N, C, H, precision_from(precision)}, device_from(facts),
      request_from(forward, backward, gemm_chunk, backward_gemm_chunk, tiles, event_rate, backward_event_rate,
                   recompute));
  return py::make_tuple(name(plan.forward), name(plan.backward), plan.gemm_chunk, plan.backward_gemm_chunk,
                        tuple_from(plan.tiles), plan.event_rate, plan.backward_event_rate);
}

leakypar::Direction direction_from(const std::string& name) {
  if (name != "forward" && name != "backward") throw std::invalid_argument("direction is '" + name + "'");
  return name == "forward" ? leakypar::Direction::forward : leakypar::Direction::backward;
}

py::list candidates(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, const std::string& precision,
                    const Facts& facts, const std::string& direction) {
  const leakypar::Workload work = {T, N, C, H, precision_from(precision)};
  py::list found;
  for (const auto& each : leakypar::candidates(direction_from(direction), work, device_from(facts))) {
    found.append(py::make_tuple(name(each.method), each.chunk_bytes, leakypar::steps_within(each.chunk_bytes, work),
                                tuple_from(each.tiles)));
  }
  return found;
}

void remember(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, const std::string& precision,
              const Facts& facts, const std::string& direction, const std::string& method, std::int64_t chunk_bytes,
              const std::optional<std::vector<std::int64_t>>& tiles) {
  const leakypar::Workload work = {T, N, C, H, precision_from(precision)};
  const leakypar::DeviceFacts device = device_from(facts);
  leakypar::MeasuredDirection measured = {leakypar::method_from(method), chunk_bytes, {}};
  if (tiles) measured.tiles = leakypar::tiles_from(*tiles);
  // What no call on this device could run is refused here, rather than at each of them.
  leakypar::Request request = {};
  const std::int64_t steps = leakypar::steps_within(chunk_bytes, work);
  const bool is_forward = direction_from(direction) == leakypar::Direction::forward;
  (is_forward ? request.forward : request.backward) = measured.method;
  (is_forward ? request.gemm_chunk : request.backward_gemm_chunk) = steps;
  request.tiles = measured.tiles;
  leakypar::make_plan(work, device, request);
  leakypar::measured_plans.remember(leakypar::measured_key(direction_from(direction), work, device), measured);
}

bool is_measured(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, const std::string& precision,
                 const Facts& facts, const std::string& direction) {
  return leakypar::measured_plans
      .find(direction_from(direction), {T, N, C, H, precision_from(precision)}, device_from(facts))
      .has_value();
}

py::dict predict(std::int64_t T, std::int64_t N, std::int64_t C, std::int64_t H, const std::string& precision,
                 const Facts& facts) {
  const leakypar::Workload work = {T, N, C, H, precision_from(precision)};
  const leakypar::DeviceFacts device = device_from(facts);
  leakypar::Request chunked = {};
  chunked.forward = leakypar::choose_scan(work, device);
  const leakypar::Plan plan = leakypar::make_plan(work, device, chunked);
  const leakypar::Cost cost = leakypar::chunked_cost(work, device, plan.forward, plan.gemm_chunk);
  py::dict read;
  read["chunked_us"] = cost.microseconds;
  read["chunked_bound"] = cost.bound;
  const auto tiles = leakypar::choose_tiles(work, device);
  if (!tiles) return read;
  const leakypar::Cost projected = leakypar::project_scan_cost(work, device, *tiles);
  read["project_scan_us"] = projected.microseconds;
  read["project_scan_bound"] = projected.bound;
  read["columns"] = tiles->columns();
  read["batch_rows"] = tiles->batch_rows;
  read["steps"] = tiles->steps();
  read["stages"] = tiles->stages;
  read["weights_resident"] = tiles->weights_resident;
  read["teams"] = tiles->teams(N, H);
  read["time_blocks"] = tiles->time_blocks;
  read["tiles"] = tiles->teams(N, H) * tiles->time_tiles(T);
  read["shared_bytes"] = tiles->shared_bytes(C, work.element_bytes());
  read["blocks_per_multiprocessor"] = leakypar::resident_blocks(*tiles, work, device);
  return read;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  m.doc() = "leakypar's compiled part: the operators (registered with torch), its build facts and the plan.";
  m.attr("variant") = variant;
  m.attr("compiler") = compiler();
  m.attr("cuda_version") = cuda_version();
  m.attr("architectures") = architectures;
  m.attr("stable_abi_target") = stable_abi_target();
  m.def("device_facts", &device_facts, arg("device"),
        "The DeviceFacts of a CUDA device, by its index; of a CPU, where that is negative.");
  m.def(
      "make_plan", &make_plan, py::kw_only(), arg("T"), arg("N"), arg("C"), arg("H"), arg("precision"), arg("facts"),
      arg("forward") = py::none(), arg("backward") = py::none(), arg("gemm_chunk") = py::none(),
      arg("backward_gemm_chunk") = py::none(), arg("tiles") = py::none(), arg("event_rate") = py::none(),
      arg("backward_event_rate") = py::none(), arg("recompute") = false, arg("measured") = true,
      "csrc/plan/plan.h: (forward, backward, gemm_chunk, backward_gemm_chunk, tiles, event_rate, backward_event_rate), "
      "where tiles are (columns, "
      "batch_rows, stages, weights_resident, time_blocks) or None. ValueError where what is forced does not fit. "
      "measured: whether what remember() was told comes before the arithmetic.");
  m.def("candidates", &candidates, py::kw_only(), arg("T"), arg("N"), arg("C"), arg("H"), arg("precision"),
        arg("facts"), arg("direction"),
        "csrc/plan/measured.h: what is worth measuring, each (method, chunk_bytes, steps of a chunk, tiles or None).");
  m.def("remember", &remember, py::kw_only(), arg("T"), arg("N"), arg("C"), arg("H"), arg("precision"), arg("facts"),
        arg("direction"), arg("method"), arg("chunk_bytes"), arg("tiles"),
        "Lets plans of such sizes be this one from now on. ValueError where the device could not run it.");
  m.def("is_measured", &is_measured, py::kw_only(), arg("T"), arg("N"), arg("C"), arg("H"), arg("precision"),
        arg("facts"), arg("direction"), "Whether a plan of such sizes is remembered.");
  m.def("forget", [] { leakypar::measured_plans.forget(); }, "Forgets every plan that remember() was told.");
  m.def("check_request", &check_request, arg("forward"), arg("backward"), arg("gemm_chunk"), arg("backward_gemm_chunk"),
        arg("tiles"), arg("event_rate"), arg("backward_event_rate"),
        "ValueError where what a user forces of a plan fits no work on any device.");
  m.def("predict", &predict, py::kw_only(), arg("T"), arg("N"), arg("C"), arg("H"), arg("precision"), arg("facts"),
        "What csrc/plan/cost.h expects of both forwards on a device of these facts, and the tiles of project_scan.");
}
