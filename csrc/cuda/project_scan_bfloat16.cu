// project_scan.cuh, which has the equation, the mapping and the bytes, for bfloat16.
//
// schedule project_scan_kernel<bfloat16, *>: copy_instructions <= 10, divisions = 0, fences_sc = 0, fences <= 2,
//   polls_that_invalidate = 0, step_barriers = 1, spills = 0
// schedule project_scan_kernel<bfloat16, 8, *>: step_products = 128, products_meanwhile >= 8, stores_16 = 32
// schedule project_scan_kernel<bfloat16, 4, *>: step_products = 64, stores_16 = 16
#include "project_scan.cuh"

namespace leakypar::cuda {

template std::int64_t project_scan_workspace(const ProjectScan<bfloat16>&, const ProjectTiles&);
template cudaError_t project_scan(const ProjectScan<bfloat16>&, const ProjectTiles&, void*, cudaStream_t);

}  // namespace leakypar::cuda
