import { signal } from '@preact/signals';
import { asProblem, isAbort } from '../api/problem.js';

/** What has just happened: shown for a while, and read out. */
export const announcement = signal<{ readonly text: string; readonly isError: boolean } | undefined>(
  undefined,
);

const SHOWN_MS = 6_000;
let timer: ReturnType<typeof setTimeout> | undefined;

export function announce(text: string, isError = false): void {
  announcement.value = { text, isError };
  clearTimeout(timer);
  timer = setTimeout(() => {
    announcement.value = undefined;
  }, SHOWN_MS);
}

/** Does what a button is for, and says what went wrong. @returns whether it worked */
export async function attempt(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (!isAbort(error)) announce(asProblem(error).message, true);
    return false;
  }
}
