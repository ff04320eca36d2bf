// version.h -- the version of the programs (--version, report.json, CITATION.cff); see CHANGELOG.md.
#pragma once
#define VERSION "0.2.0"
