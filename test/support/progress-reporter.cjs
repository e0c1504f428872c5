const { relative } = require('node:path');

/** The least time between two lines of progress: a log of CI stays readable, and nobody wonders for long. */
const BETWEEN_LINES_MS = 10_000;
const SLOWEST = 10;

/**
 * Tells how far the run has come, and at its end which files took longest. Results and failures are the business of
 * Jest's own reporters, which print a failure at once and again at the end.
 */
module.exports = class ProgressReporter {
  files = [];
  began = performance.now();
  lastLine = this.began;

  constructor({ rootDir }) {
    this.rootDir = rootDir;
  }

  onTestResult(_test, { testFilePath, perfStats }, { numTotalTestSuites, numFailedTestSuites }) {
    const seconds = (perfStats.end - perfStats.start) / 1_000;
    this.files.push({ name: relative(this.rootDir, testFilePath), seconds });
    const now = performance.now();
    if (now - this.lastLine < BETWEEN_LINES_MS) return;
    this.lastLine = now;
    const failed = numFailedTestSuites > 0 ? `, ${numFailedTestSuites} of them failed` : '';
    say(`${this.files.length} of ${numTotalTestSuites} files after ${minutes(now - this.began)}${failed}`);
  }

  onRunComplete() {
    // A run of a few files that were named has nothing to find out.
    if (this.files.length <= SLOWEST) return;
    const slowest = this.files.sort((one, other) => other.seconds - one.seconds).slice(0, SLOWEST);
    const lines = slowest.map(({ name, seconds }) => `${seconds.toFixed(1).padStart(8)} s  ${name}`);
    say(`\nThe slowest of ${this.files.length} files:\n${lines.join('\n')}`);
  }
};

/** Jest keeps standard output for the results that a program asks for. */
function say(text) {
  process.stderr.write(`${text}\n`);
}

function minutes(ms) {
  const seconds = Math.round(ms / 1_000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}
