// launch/report/assets.h - style and script of the report page, embedded from launch/report/assets.
#pragma once

namespace uqa::report {

extern const char* const k_style;
extern const char* const k_script;

}  // namespace uqa::report
