/** So much of what waits is done at a time: a few, or a part of it where that is more, so that what waits is bounded. */
const AT_ONCE = 4;
const PART = 16;

const waiting: (() => void)[] = [];

/**
 * Does something soon that may wait for more urgent work, in the order of the calls. Hundreds of replies bring their
 * text in bursts. A request, or a database's answer that a reply has not begun without, would wait behind each of them;
 * so the event loop looks for such in between.
 */
export function yielding(task: () => void): void {
  if (waiting.push(task) === 1) setImmediate(work);
}

function work(): void {
  const tasks = waiting.splice(0, Math.max(AT_ONCE, Math.ceil(waiting.length / PART)));
  if (waiting.length > 0) setImmediate(work);
  for (const task of tasks) task();
}
