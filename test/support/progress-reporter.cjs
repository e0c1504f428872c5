const { relative } = require('node:path');

/**
 * Milliseconds between two lines of progress, at least. A log of CI stays readable, and people see that the run goes
 * on.
 */
const BETWEEN_LINES_MS = 10_000;
const SLOWEST = 10;

/**
 * Prints how far the run has come, and at its end which files took longest. Jest's own reporters print results and
 * failures.
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
    // In a run of a few files the slowest ones are of no interest.
    if (this.files.length <= SLOWEST) return;
    const slowest = this.files.sort((one, other) => other.seconds - one.seconds).slice(0, SLOWEST);
    const lines = slowest.map(({ name, seconds }) => `${seconds.toFixed(1).padStart(8)} s  ${name}`);
    say(`\nThe slowest of ${this.files.length} files:\n${lines.join('\n')}`);
  }
};

/** Standard output is for the results that a program reads, as in `jest --json`. */
function say(text) {
  process.stderr.write(`${text}\n`);
}

function minutes(ms) {
  const seconds = Math.round(ms / 1_000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}
