// launch/options.h - options of one subcommand: each field is bound once to a (dotted) name, its default and its help line.
//
//   OptionSet options("pretrain", "trains a user encoder", "uqa pretrain --data ml-100k --run runs/trm");
//   options.add("data", &config.data, "imported data set (directory)", OptionSet::kRequired);
//   options.add("optim.peak_lr", &config.loop.optim.peak_lr, "learning rate after warm-up (> 0)");
//   options.parse(args);                     // command line, then --config file.ini, then the default
//   write_file_atomic(run / "config.ini", options.to_ini());
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace uqa::launch {

/// What an option is, for pages and completions made of them.
struct OptionInfo {
  std::string name, help, default_text;
  bool required = false, is_switch = false, is_list = false;
};

/// Not thread-safe. Bound fields must outlive the set. All errors are Error(kConfig) naming the option and the way out.
class OptionSet {
 public:
  enum Kind { kOptional, kRequired };

  OptionSet(std::string command, std::string summary, std::string example);

  void add(const std::string& name, std::string* field, const std::string& help, Kind kind = kOptional);
  void add(const std::string& name, double* field, const std::string& help, Kind kind = kOptional);
  void add(const std::string& name, std::int64_t* field, const std::string& help, Kind kind = kOptional);
  /// A switch: present, or with a value true/false.
  void add(const std::string& name, bool* field, const std::string& help);
  /// Several values: `--input a b` or a comma-separated list in a file.
  void add(const std::string& name, std::vector<std::string>* field, const std::string& help, Kind kind = kOptional);
  /// Words without a name go to this option (declared by add).
  void set_positional(const std::string& name) { positional_ = name; }
  /// The option is about this one call (verbosity, overwrite): left out of to_ini().
  void set_transient(const std::string& name);

  /// Fills the fields. False when --help was asked for. A file may hold the same names in [sections]; the command line wins.
  [[nodiscard]] bool parse(const std::vector<std::string>& args);
  /// Text of --help: what it does, an example, options by section with their defaults.
  [[nodiscard]] std::string help() const;
  /// The resolved values as an INI file that --config reads back to the same values.
  [[nodiscard]] std::string to_ini() const;
  [[nodiscard]] const std::string& command() const { return command_; }
  [[nodiscard]] const std::string& summary() const { return summary_; }
  [[nodiscard]] const std::string& example() const { return example_; }
  [[nodiscard]] std::vector<std::string> names() const;
  /// Every option but --help, in the order in which they were added.
  [[nodiscard]] std::vector<OptionInfo> infos() const;
  /// Names that parse() found on the command line or in a file, in the order in which they were added; without transient ones.
  [[nodiscard]] std::vector<std::string> given() const;

 private:
  struct Option {
    std::string name, help;
    bool required = false, is_switch = false, is_list = false, transient = false, given = false;
    std::function<void(const std::vector<std::string>&)> set;
    std::function<std::string()> show;
    std::string shown_default;
  };
  void add_option(Option option, Kind kind);
  Option& find(const std::string& name, const std::string& where);

  std::string command_, summary_, example_, positional_, config_file_;
  std::vector<Option> options_;
};

}  // namespace uqa::launch
