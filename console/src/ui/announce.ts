import { signal } from '@preact/signals';
import { asProblem, isAbort } from '../api/problem.js';

/** What has just happened: shown for a while, and read out. */
export const announcement = signal<{ readonly text: string; readonly isError: boolean } | undefined>(
  undefined,
);

const SHOWN_MS = 6_000;
let timer: ReturnType<typeof setTimeout> | undefined;

/** @param of what it is said of; is named, because somebody may look at another one by the time that it is said */
export function announce(text: string, of?: string, isError = false): void {
  announcement.value = { text: of === undefined ? text : `${of}: ${text}`, isError };
  clearTimeout(timer);
  timer = setTimeout(() => {
    announcement.value = undefined;
  }, SHOWN_MS);
}

/** Does what a button is for, and says what went wrong. @returns whether it worked */
export async function attempt(work: () => Promise<unknown>, of?: string): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (!isAbort(error)) announce(asProblem(error).message, of, true);
    return false;
  }
}
