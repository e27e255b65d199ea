#include "launch/command.h"

namespace uqa::launch {

const std::vector<CommandEntry>& commands() {
  static const std::vector<CommandEntry> table{
      {"import", "turns an interaction log (RecBole, CSV, Parquet, Arrow) into HDF5 shards", make_import_command},
      {"synth", "generates an interaction log of any size whose best attainable loss is known", make_synth_command},
      {"questions", "builds fair multiple-choice questions of the seven types from a data set", make_questions_command},
      {"inspect", "prints what a data set, question set, run or file holds", make_inspect_command},
      {"pretrain", "trains a user encoder on next-item prediction", make_pretrain_command},
      {"align", "trains the adapter (and LoRA) that shows users to an LLM", make_align_command},
      {"evaluate", "answers questions with a soft prompt or a baseline and scores them", make_evaluate_command},
      {"compare", "tests whether two evaluations differ", make_compare_command},
      {"export", "writes a run as safetensors, as a Hugging Face directory, and as users' soft prompts", make_export_command},
      {"import-checkpoint", "makes a run directory from weights of the reference implementation", make_import_checkpoint_command},
      {"study", "scaling studies: plan, run and watch many runs from one file", make_study_command},
      {"report", "writes one self-contained HTML page about runs, evaluations and studies", make_report_command},
      {"doctor", "shows how ranks are placed, what their collectives reach, and what is misconfigured", make_doctor_command},
      {"verify", "shows that a run gives the same losses on every layout of its ranks", make_verify_command},
      {"bench", "measures throughput, memory and FLOPs of one part", make_bench_command},
      {"completion", "prints shell completions: source <(uqa completion bash)", make_completion_command},
      {"man", "prints the manual page: uqa man > uqa.1", make_man_command},
  };
  return table;
}

}  // namespace uqa::launch
