/**
 * How many waiting tasks run in one turn of the event loop: a few, or this share of them where that is more. Without
 * the share, tasks that arrive faster than a few per turn would pile up without a bound.
 */
const AT_ONCE = 4;
const SHARE = 16;

const waiting: (() => void)[] = [];

/**
 * Runs a task soon, in the order of the calls, and lets more urgent work go first. Hundreds of replies bring their text
 * in bursts; if a burst were handled in one go, a new request or an answer of the database would wait for the end of
 * it.
 * The event loop therefore looks for such work after every few tasks.
 */
export function atLowPriority(task: () => void): void {
  if (waiting.push(task) === 1) setImmediate(work);
}

function work(): void {
  const tasks = waiting.splice(0, Math.max(AT_ONCE, Math.ceil(waiting.length / SHARE)));
  if (waiting.length > 0) setImmediate(work);
  for (const task of tasks) task();
}
