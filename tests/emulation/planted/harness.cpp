// harness CASE...     runs the cases by name        harness --list     prints their names
#include "harness.h"

#include <string_view>

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string_view wanted = arguments[i];
    bool found = wanted == "--list";
    for (const planted::Case& candidate : planted::cases()) {
      if (wanted == "--list") std::printf("%s\n", candidate.name);
      if (wanted != candidate.name) continue;
      found = true;
      candidate.run();
      std::fflush(stdout);
    }
    if (!found) {
      std::fprintf(stderr, "no case is called %s\n", arguments[i]);
      return 2;
    }
  }
  return 0;
}
