uqa_add_unit_test(faithful_test align_faithful_test.cpp align_parts_test.cpp deviations_test.cpp features_test.cpp LINK uqa::trainer TORCH UNITE)
