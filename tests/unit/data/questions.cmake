uqa_add_unit_test(questions_test questions_builder_test.cpp questions_prior_test.cpp questions_files_test.cpp questions_import_test.cpp
                  LINK uqa::data)
target_compile_definitions(questions_test PRIVATE UQA_VENV_DIR="${UQA_VENV}")
