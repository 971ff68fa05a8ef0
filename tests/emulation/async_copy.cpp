#include "async_copy.h"

#include <cstdint>
#include <cstring>
#include <utility>

#include "diagnosis.h"
#include "grid.h"
#include "state.h"

namespace leakypar_emulation {

void AsyncCopies::issue(void* to, const void* from, std::size_t bytes, std::size_t valid) {
  std::memset(to, 0xFF, bytes);
  uncommitted_.push_back({to, from, bytes, valid});
}

void AsyncCopies::commit() { groups_.push_back(std::exchange(uncommitted_, {})); }

void AsyncCopies::wait(std::size_t pending) {
  for (; groups_.size() > pending; groups_.pop_front()) {
    for (const Copy& copy : groups_.front()) {
      if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
      std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    }
  }
}

void AsyncCopies::forget() {
  uncommitted_.clear();
  groups_.clear();
}

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t valid) {
  require_shared(to, bytes, "the destination of an asynchronous copy");
  if (valid > bytes) fail("an asynchronous copy of %zu bytes has a source of %zu", bytes, valid);
  if (reinterpret_cast<std::uintptr_t>(from) % bytes != 0) {
    fail("the source of an asynchronous copy is not on a boundary of %zu bytes", bytes);
  }
  current.lane->copies.issue(to, from, bytes, valid);
}

void commit_copies() {
  require_kernel("commit_copies");
  current.lane->copies.commit();
}

void wait_copies(std::size_t pending) {
  require_kernel("wait_copies");
  current.lane->copies.wait(pending);
}

}  // namespace leakypar_emulation
