#include "data/questions/wording.h"

#include <algorithm>

#include "core/error.h"

namespace uqa::data {

namespace {

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r' || c == '\t'; }, ' ');
  const auto first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
  return first == std::string::npos ? std::string() : text.substr(first, last - first + 1);
}

std::string ordinal(int k) {
  const int tens = k % 100, ones = k % 10;
  const char* suffix = tens >= 11 && tens <= 13 ? "th" : ones == 1 ? "st" : ones == 2 ? "nd" : ones == 3 ? "rd" : "th";
  return fmt::format("{}{}", k, suffix);
}

std::string english(const FactFinder& finder, const Slot& slot, std::int64_t recent) {
  const std::string label =
      slot.attribute < 0 ? "title" : finder.attributes()[static_cast<std::size_t>(slot.attribute)].label;
  const bool multi = slot.attribute >= 0 && finder.is_multi_valued(slot.attribute);
  const std::string from_start = fmt::format("{} item in the history", ordinal(slot.position));
  const std::string from_end =
      slot.position == 1 ? std::string("most recent item") : ordinal(slot.position) + " most recent item";
  switch (slot.form) {
    case Form::kTitleFromStart:
      return fmt::format("What is the title of the {}?", from_start);
    case Form::kTitleFromEnd:
      return fmt::format("What is the title of the {}?", from_end);
    case Form::kAttributeFromStart:
      return multi ? fmt::format("Which {} does the {} have?", label, from_start)
                   : fmt::format("What is the {} of the {}?", label, from_start);
    case Form::kAttributeFromEnd:
      return multi ? fmt::format("Which {} does the {} have?", label, from_end)
                   : fmt::format("What is the {} of the {}?", label, from_end);
    case Form::kLength:
      return "How many items are in the history?";
    case Form::kCount:
      return fmt::format("How many items in the history have {} {}?", label,
                         one_line(finder.value_text(slot.attribute, static_cast<std::uint64_t>(slot.value))));
    case Form::kNextTitle:
      return "What is the title of the next item?";
    case Form::kNextAttribute:
      return multi ? fmt::format("Which {} will the next item have?", label)
                   : fmt::format("What will be the {} of the next item?", label);
    case Form::kTopThree:
      return fmt::format("What are the user's 3 top values of {}, in order?", label);
    case Form::kAmongTopThree:
      return fmt::format("Which {} is among the user's top 3?", label);
    case Form::kRecentTop:
      return fmt::format("Which {} is most frequent in the last {} items?", label, recent);
    case Form::kTrajectory:
      return fmt::format("How did the user's favorite {} change over time?", label);
  }
  UQA_FAIL(ErrorCode::kInternal, "question form {} is unknown", static_cast<int>(slot.form));
}

std::string chinese(const FactFinder& finder, const Slot& slot, std::int64_t recent) {
  const std::string label =
      slot.attribute < 0 ? "标题" : finder.attributes()[static_cast<std::size_t>(slot.attribute)].label;
  const bool multi = slot.attribute >= 0 && finder.is_multi_valued(slot.attribute);
  const char* asks = multi ? "包含以下哪一个？" : "是什么？";
  switch (slot.form) {
    case Form::kTitleFromStart:
    case Form::kAttributeFromStart:
      return fmt::format("该用户第{}次浏览的商品的{}{}", slot.position, label, asks);
    case Form::kTitleFromEnd:
    case Form::kAttributeFromEnd:
      return fmt::format("该用户倒数第{}次（从1开始计数）浏览的商品的{}{}", slot.position, label, asks);
    case Form::kLength:
      return "该用户浏览序列的长度是多少？";
    case Form::kCount:
      return fmt::format("该序列中{}为{}的商品有多少个？", label,
                         one_line(finder.value_text(slot.attribute, static_cast<std::uint64_t>(slot.value))));
    case Form::kNextTitle:
      return "该用户下一个可能点击的商品的标题是什么？";
    case Form::kNextAttribute:
      return fmt::format("该用户下一个可能点击的商品的{}{}", label, asks);
    case Form::kTopThree:
      return fmt::format("该用户最感兴趣的3个{}依次是什么？", label);
    case Form::kAmongTopThree:
      return fmt::format("以下哪一个属于该用户最感兴趣的3个{}？", label);
    case Form::kRecentTop:
      return fmt::format("在最近{}次浏览中，该用户近期最感兴趣的{}是什么？", recent, label);
    case Form::kTrajectory:
      return fmt::format("该用户对{}偏好的转移路径是什么？", label);
  }
  UQA_FAIL(ErrorCode::kInternal, "question form {} is unknown", static_cast<int>(slot.form));
}

}  // namespace

std::string stem_text(const FactFinder& finder, const Slot& slot, Language language, std::int64_t recent) {
  return language == Language::kChinese ? chinese(finder, slot, recent) : english(finder, slot, recent);
}

std::string option_text(const FactFinder& finder, const Slot& slot, std::uint64_t value, Language language) {
  if (is_numeric(slot.form)) return fmt::format("{}", value);
  if (slot.attribute < 0) return one_line(finder.title(value));
  if (!is_triple(slot.form)) return one_line(finder.value_text(slot.attribute, value));
  const bool path = slot.form == Form::kTrajectory;
  const char* joint = language == Language::kChinese ? (path ? "→" : "、") : (path ? " -> " : ", ");
  std::string text;
  for (const std::uint64_t part : unpack_values(value)) {
    if (!text.empty()) text += joint;
    text += one_line(finder.value_text(slot.attribute, part));
  }
  return text;
}

std::string message_text(const std::string& stem, const std::vector<std::string>& options, Language language) {
  std::string text = stem;
  for (std::size_t i = 0; i < options.size(); ++i)
    text += fmt::format("\n{}. {}", static_cast<char>('A' + static_cast<int>(i)), options[i]);
  return text + (language == Language::kChinese ? "\n请直接回答选项。" : "\nAnswer with the option.");
}

Question with_rotated_options(const Question& question, std::int64_t shift, const std::string& language) {
  if (shift == 0) return question;
  const auto wording = language == "zh" ? Language::kChinese : Language::kEnglish;
  UQA_CHECK(!question.options.empty() && message_text(question.stem, question.options, wording) == question.text, ErrorCode::kConfig,
            "question {}: its text is not its stem, options and how to answer as `uqa questions` words them, so its options cannot be moved; build the questions "
            "with `uqa questions`",
            question.id);
  Question rotated = question;
  const auto count = static_cast<std::int64_t>(question.options.size());
  for (std::int64_t i = 0; i < count; ++i) rotated.options[static_cast<std::size_t>(i)] = question.options[static_cast<std::size_t>((i + shift) % count)];
  const auto gold = (static_cast<std::int64_t>(question.gold()) - shift % count + count) % count;
  rotated.answer = std::string(1, static_cast<char>('A' + gold));
  rotated.text = message_text(rotated.stem, rotated.options, wording);
  return rotated;
}

}  // namespace uqa::data
