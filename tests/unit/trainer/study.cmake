uqa_add_unit_test(study_test study_file_test.cpp study_plan_test.cpp study_child_test.cpp LINK uqa::trainer TORCH)
set_target_properties(study_test PROPERTIES UNITY_BUILD ON)
