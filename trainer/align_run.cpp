// The alignment stage from configuration to result.json.
#include "core/log.h"
#include "trainer/align.h"
#include "trainer/run_info.h"

namespace uqa::trainer {

Json run_align(const AlignConfig& config, const comm::Mesh& mesh, RunDirectory& run) {
  const auto& world = mesh.world();
  config.validate();
  comm::run_agreed(world, [&] { config.check_inputs(); });
  set_num_threads(config.loop.train.num_threads, world);
  AlignTask task(config, mesh);
  Json info = describe_run(mesh);
  const auto deviations = task.deviations();
  info["deviations"] = deviations.to_json();
  info["memory"] = {{"recompute", config.loop.memory.recompute}};
  const Json facts = task.describe();
  info.update(facts);
  comm::run_agreed(world, [&] { run.write_run_json(info); });
  log::info("align", "{} training questions in {} groups of one text, {:.0f} LLM rows a question, {} to validate; trained parameters: {}",
            facts["questions"]["train"].get<std::int64_t>(), task.num_samples(),
            facts["questions"]["rows_per_question"].get<double>(), facts["questions"]["valid"].get<std::int64_t>(), facts["trained_parameters"].dump());

  deviations.print("align");

  TrainingResult trained;
  if (task.parameters().empty()) {
    log::info("align", "every part is frozen: the run takes them as they are");
    task.set_training(false);
    task.save_model(run.path(), mesh);
  } else {
    trained = run_training(task, config.loop, mesh, run);
  }
  Json result{{"stage", task.stage()},
              {"steps", trained.steps},
              {"epochs", trained.epochs},
              {"last_loss_nats", trained.last_loss_nats},
              {"best_step", trained.best_step},
              {"stopped_early", trained.stopped_early}};
  if (trained.best_metric) result["best_valid_metric"] = *trained.best_metric;
  comm::run_agreed(world, [&] {
    if (!run.writer()) return;
    write_file_atomic(run.path() / "result.json", result.dump(2) + "\n");
    run.write_run_json({{"result", result}});
  });
  return result;
}

}  // namespace uqa::trainer
