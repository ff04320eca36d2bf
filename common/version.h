// version.h -- the version of the programs: in --version, in report.json and in CITATION.cff. CHANGELOG.md says what changed.
#pragma once
#define VERSION "0.2.0"
