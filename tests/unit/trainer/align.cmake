uqa_add_unit_test(align_test align_prompt_test.cpp align_scoring_test.cpp align_task_test.cpp align_evaluate_test.cpp align_compare_test.cpp
                  align_word_start_test.cpp align_export_test.cpp
                  LINK uqa::trainer TORCH UNITE)
