// cp.async: copies from device memory to shared memory that a thread issues, and that are there after its wait.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

namespace leakypar_emulation {

// The copies that one thread has in flight.
class AsyncCopies {
 public:
  void issue(void* to, const void* from, std::size_t bytes, std::size_t valid);
  void commit();
  void wait(std::size_t pending);

  // A thread that returns leaves nobody who could read what was still in flight.
  void forget();

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes, valid;
  };

  std::vector<Copy> uncommitted_;
  std::deque<std::vector<Copy>> groups_;
};

// Called by a kernel's threads. Copies `valid` bytes, at most `bytes`, and zeros after them; `bytes` is 4, 8 or 16.
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t valid);

// Makes a group of the copies issued since the last group.
void commit_copies();

// Waits until at most `pending` of the thread's latest groups are in flight.
void wait_copies(std::size_t pending);

}  // namespace leakypar_emulation
