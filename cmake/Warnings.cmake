# uqa_warnings: what every target of ours is compiled with. Third-party headers come in as SYSTEM includes.
add_library(uqa_warnings INTERFACE)
# Designated initializers leave the other fields at their defaults on purpose, hence no missing-field warning.
target_compile_options(uqa_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast
                       -Wno-missing-field-initializers -Werror)
if(UQA_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer)
  # GCC warns falsely about <regex> where sanitizers and the optimizer meet; the other builds keep the warning.
  target_compile_options(uqa_warnings INTERFACE -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=address,undefined)
endif()
