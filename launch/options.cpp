#include "launch/options.h"

#include <algorithm>
#include <map>
#include <sstream>

#include <boost/program_options.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

namespace uqa::launch {
namespace po = boost::program_options;
namespace {

constexpr const char* kStrayWord = "stray word";

std::string only(const std::string& name, const std::vector<std::string>& values) {
  UQA_CHECK(values.size() == 1, ErrorCode::kConfig, "--{} is given {} times, takes one value; keep one", name, values.size());
  return values.front();
}

std::string section_of(const std::string& name) {
  const auto dot = name.find('.');
  return dot == std::string::npos ? std::string() : name.substr(0, dot);
}

}  // namespace

OptionSet::OptionSet(std::string command, std::string summary, std::string example)
    : command_(std::move(command)), summary_(std::move(summary)), example_(std::move(example)) {
  add("config", &config_file_, "INI file with any of these options in [sections]; the command line wins");
  set_transient("config");
}

void OptionSet::add_option(Option option, Kind kind) {
  for (const auto& other : options_) {
    UQA_CHECK(other.name != option.name, ErrorCode::kInternal, "option --{} is bound twice", option.name);
  }
  option.required = kind == kRequired;
  option.shown_default = option.show();
  options_.push_back(std::move(option));
}

void OptionSet::add(const std::string& name, std::string* field, const std::string& help, Kind kind) {
  Option option{.name = name, .help = help};
  option.set = [=](const std::vector<std::string>& values) { *field = only(name, values); };
  option.show = [=] { return *field; };
  add_option(std::move(option), kind);
}

void OptionSet::add(const std::string& name, double* field, const std::string& help, Kind kind) {
  Option option{.name = name, .help = help};
  option.set = [this, name, field](const std::vector<std::string>& values) {
    const auto text = only(name, values);
    const auto value = parse_double(text);
    UQA_CHECK(value.has_value(), ErrorCode::kConfig, "--{} = {}, must be a number; see uqa {} --help", name, text, command_);
    *field = *value;
  };
  option.show = [=] { return fmt::format("{}", *field); };
  add_option(std::move(option), kind);
}

void OptionSet::add(const std::string& name, std::int64_t* field, const std::string& help, Kind kind) {
  Option option{.name = name, .help = help};
  option.set = [this, name, field](const std::vector<std::string>& values) {
    const auto text = only(name, values);
    const auto value = parse_int(text);
    UQA_CHECK(value.has_value(), ErrorCode::kConfig, "--{} = {}, must be a whole number; see uqa {} --help", name, text, command_);
    *field = *value;
  };
  option.show = [=] { return fmt::format("{}", *field); };
  add_option(std::move(option), kind);
}

void OptionSet::add(const std::string& name, bool* field, const std::string& help) {
  Option option{.name = name, .help = help, .is_switch = true};
  option.set = [=](const std::vector<std::string>& values) {
    const auto text = only(name, values);
    UQA_CHECK(text.empty() || text == "true" || text == "false", ErrorCode::kConfig, "--{} = {}, must be true or false", name, text);
    *field = text != "false";
  };
  option.show = [=] { return std::string(*field ? "true" : "false"); };
  add_option(std::move(option), kOptional);
}

void OptionSet::add(const std::string& name, std::vector<std::string>* field, const std::string& help, Kind kind) {
  Option option{.name = name, .help = help, .is_list = true};
  option.set = [=](const std::vector<std::string>& values) {
    field->clear();
    for (const auto& value : values) {
      for (auto& piece : split(value, ',')) field->push_back(std::move(piece));
    }
  };
  option.show = [=] { return fmt::format("{}", fmt::join(*field, ",")); };
  add_option(std::move(option), kind);
}

void OptionSet::set_transient(const std::string& name) { find(name, "").transient = true; }

std::vector<std::string> OptionSet::given() const {
  std::vector<std::string> names;
  for (const auto& option : options_) {
    if (option.given && !option.transient) names.push_back(option.name);
  }
  return names;
}

std::vector<std::string> OptionSet::names() const {
  std::vector<std::string> all{"help"};
  for (const auto& option : options_) all.push_back(option.name);
  return all;
}

std::vector<OptionInfo> OptionSet::infos() const {
  std::vector<OptionInfo> infos;
  for (const auto& o : options_) {
    infos.push_back({.name = o.name, .help = o.help, .default_text = o.shown_default, .required = o.required, .is_switch = o.is_switch, .is_list = o.is_list});
  }
  return infos;
}

OptionSet::Option& OptionSet::find(const std::string& name, const std::string& where) {
  for (auto& option : options_) {
    if (option.name == name) return option;
  }
  UQA_FAIL(ErrorCode::kConfig, "unknown option '{}{}'{}{}; see uqa {} --help", where.empty() ? "--" : "", name,
           where.empty() ? "" : " in " + where, suggestion(name, names(), where.empty() ? "--" : ""), command_);
}

bool OptionSet::parse(const std::vector<std::string>& args) {
  po::options_description description;
  description.add_options()("help,h", "");
  for (const auto& option : options_) {
    auto* value = po::value<std::vector<std::string>>();
    if (option.is_list) value->multitoken();
    if (option.is_switch) value->implicit_value({""}, "")->zero_tokens();
    description.add_options()(option.name.c_str(), value, "");
  }
  po::positional_options_description positional;
  // Stray words are collected too, so that an unknown option before them is what the error names.
  positional.add(positional_.empty() ? kStrayWord : positional_.c_str(), -1);
  if (positional_.empty()) description.add_options()(kStrayWord, po::value<std::vector<std::string>>(), "");

  // A name may be written with '-' for '_' and the other way round.
  const auto plain = [](std::string name) {
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  };
  const auto declared = [&](const std::string& name) {
    if (std::any_of(options_.begin(), options_.end(), [&](const Option& o) { return o.name == name; })) return name;
    const auto found = std::find_if(options_.begin(), options_.end(), [&](const Option& o) { return plain(o.name) == plain(name); });
    return found == options_.end() ? name : found->name;
  };
  // Switches may carry "=true": boost's zero_tokens() refuses that, so it is split off here.
  std::vector<std::string> words;
  std::map<std::string, std::string> switches;
  for (const auto& word : args) {
    const auto equals = word.find('=');
    const std::string name = word.starts_with("--") ? declared(word.substr(2, equals == std::string::npos ? equals : equals - 2)) : "";
    const auto known = std::find_if(options_.begin(), options_.end(), [&](const Option& o) { return o.name == name && o.is_switch; });
    if (equals != std::string::npos && known != options_.end()) {
      switches[name] = word.substr(equals + 1);
    } else {
      words.push_back(!word.starts_with("--") ? word : "--" + name + (equals == std::string::npos ? "" : word.substr(equals)));
    }
  }

  std::map<std::string, std::vector<std::string>> given;
  try {
    const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(words).options(description).positional(positional).style(style).allow_unregistered().run();
    for (const auto& entry : parsed.options) {
      if (entry.unregistered) (void)find(entry.string_key, "");
      UQA_CHECK(entry.string_key != kStrayWord, ErrorCode::kConfig, "unexpected word '{}'; options start with --, see uqa {} --help",
                entry.value.empty() ? "" : entry.value.front(), command_);
      if (entry.string_key == "help") return false;
      auto& values = given[entry.string_key];
      values.insert(values.end(), entry.value.begin(), entry.value.end());
      if (entry.value.empty()) values.emplace_back();
    }
  } catch (const po::error& e) {
    UQA_FAIL(ErrorCode::kConfig, "{}; see uqa {} --help", e.what(), command_);
  }
  for (const auto& [name, text] : switches) given[name] = {text};

  if (const auto config = given.find("config"); config != given.end()) {
    config_file_ = only("config", config->second);
    std::istringstream text(read_file(config_file_));
    try {
      const po::options_description nothing;
      for (const auto& entry : po::parse_config_file(text, nothing, true).options) {
        auto& option = find(entry.string_key, config_file_);
        if (given.contains(option.name)) continue;
        option.set(entry.value);
        option.given = true;
      }
    } catch (const po::error& e) {
      UQA_FAIL(ErrorCode::kConfig, "{}: {}", config_file_, e.what());
    }
  }
  for (const auto& [name, values] : given) {
    auto& option = find(name, "");
    option.set(values);
    option.given = true;
  }
  for (const auto& option : options_) {
    UQA_CHECK(!option.required || (option.given && !option.show().empty()), ErrorCode::kConfig, "--{} is required ({}); see uqa {} --help",
              option.name, option.help, command_);
  }
  return true;
}

std::string OptionSet::help() const {
  std::string text = fmt::format("uqa {} - {}\n\nExample:\n  {}\n", command_, summary_, example_);
  std::vector<std::string> sections;
  for (const auto& option : options_) {
    const auto section = section_of(option.name);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
  }
  for (const auto& section : sections) {
    text += section.empty() ? "\nOptions:\n" : fmt::format("\n{} settings:\n", section);
    for (const auto& option : options_) {
      if (section_of(option.name) != section) continue;
      const std::string value = option.required                  ? " (required)"
                                : option.is_switch               ? ""
                                : option.shown_default.empty()   ? ""
                                                                 : fmt::format(" [{}]", option.shown_default);
      text += fmt::format("  --{:<28} {}{}\n", option.name, option.help, value);
    }
  }
  return text;
}

std::string OptionSet::to_ini() const {
  std::string text = fmt::format("# uqa {}\n", command_);
  std::vector<std::string> sections;
  for (const auto& option : options_) {
    const auto section = section_of(option.name);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
  }
  std::stable_partition(sections.begin(), sections.end(), [](const std::string& s) { return s.empty(); });
  for (const auto& section : sections) {
    if (!section.empty()) text += fmt::format("[{}]\n", section);
    for (const auto& option : options_) {
      if (section_of(option.name) != section || option.transient) continue;
      const auto value = option.show();
      if (value.empty() && option.shown_default.empty()) continue;  // an empty value that is not the default is a setting
      text += fmt::format("{} = {}\n", section.empty() ? option.name : option.name.substr(section.size() + 1), value);
    }
  }
  return text;
}

}  // namespace uqa::launch
