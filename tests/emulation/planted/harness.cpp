// harness CASE...    runs the cases of these names, and prints a line for each: its name and its bits
#include "harness.h"

#include <string_view>

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string_view wanted = arguments[i];
    bool found = false;
    for (const planted::Case& candidate : planted::cases()) {
      if (wanted != candidate.name) continue;
      found = true;
      std::printf("%s ", candidate.name);
      candidate.run();
      std::printf("\n");
    }
    if (!found) {
      std::fprintf(stderr, "no case is called %s\n", arguments[i]);
      return 2;
    }
  }
  return 0;
}
