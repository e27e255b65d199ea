# language models
uqa_add_unit_test(models_llm_test llm_functions_test.cpp llm_decoder_test.cpp llm_lora_test.cpp llm_load_test.cpp LINK uqa::models TORCH UNITE)
include("${CMAKE_SOURCE_DIR}/bench/llm.cmake")
