uqa_add_unit_test(synth_test synth_test.cpp LINK uqa::data)
