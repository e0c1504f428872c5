/**
 * How many waiting tasks run in one turn of the event loop: `MIN_TASKS`, or one in `FRACTION` of those that wait,
 * whichever is more. With a fixed number, tasks that arrive faster would pile up without a bound.
 */
const MIN_TASKS = 4;
const FRACTION = 16;

const waiting: (() => void)[] = [];

/**
 * Runs a task soon, in the order of the calls, and lets more urgent work go first. Hundreds of replies bring their text
 * in bursts. If a burst were handled in one go, new requests and answers of the database would wait until its end.
 * Therefore only a few tasks run before the event loop looks for other work.
 */
export function atLowPriority(task: () => void): void {
  if (waiting.push(task) === 1) setImmediate(work);
}

function work(): void {
  const tasks = waiting.splice(0, Math.max(MIN_TASKS, Math.ceil(waiting.length / FRACTION)));
  if (waiting.length > 0) setImmediate(work);
  for (const task of tasks) task();
}
