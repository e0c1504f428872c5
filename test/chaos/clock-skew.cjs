// Loaded into a node: its clock is off by CLOCK_SKEW_MS. Timers and `performance` go on as before, as they do when the
// clock of a machine is set.
const skew = Number(process.env.CLOCK_SKEW_MS);
const RealDate = Date;
const realNow = Date.now;
globalThis.Date = class Date extends RealDate {
  constructor(...given) {
    if (given.length === 0) super(realNow() + skew);
    else super(...given);
  }
  static now() {
    return realNow() + skew;
  }
};
