# What `colcon test` runs in a workspace. The linters are named one by one: ament_lint_auto would also walk a virtual
# environment in this folder. Copyright headers are not asked for (LICENSE covers the tree), and docstrings are
# checked by ruff (pyproject.toml).
foreach(linter flake8 lint_cmake xmllint)
  find_package(ament_cmake_${linter} QUIET)
  find_program(ament_${linter}_BIN NAMES ament_${linter}) # the wheels bring the CMake side alone
endforeach()
if(ament_cmake_flake8_FOUND AND ament_flake8_BIN)
  ament_flake8(CONFIG_FILE ${CMAKE_CURRENT_SOURCE_DIR}/cmake/flake8.ini)
endif()
if(ament_cmake_lint_cmake_FOUND AND ament_lint_cmake_BIN)
  ament_lint_cmake(MAX_LINE_LENGTH 120)
endif()
if(ament_cmake_xmllint_FOUND AND ament_xmllint_BIN)
  ament_xmllint()
endif()

find_package(ament_cmake_pytest QUIET)
if(ament_cmake_pytest_FOUND)
  foreach(room bundle cli client inference launch memory nodes package perception recordings ros web)
    ament_add_pytest_test(${room} test/${room} TIMEOUT 600)
  endforeach()
endif()
