// project_scan.cuh, which has the equation, the mapping and the bytes, for float32, whose operands are rounded to TF32.
//
// schedule project_scan_kernel<float, *>: copy_instructions <= 10, divisions = 0, fences_sc = 0, fences <= 2,
//   polls_that_invalidate = 0, step_barriers = 1, spills = 0
// schedule project_scan_kernel<float, 8, *>: step_products = 128, stores_16 = 64
// schedule project_scan_kernel<float, 4, *>: step_products = 64, stores_16 = 32
#include "project_scan.cuh"

namespace leakypar::cuda {

template std::int64_t project_scan_workspace(const ProjectScan<float>&, const ProjectTiles&);
template cudaError_t project_scan(const ProjectScan<float>&, const ProjectTiles&, void*, cudaStream_t);

}  // namespace leakypar::cuda
