import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

export interface Resource<T> {
  readonly data: T | undefined;
  readonly problem: Problem | undefined;
  readonly load: () => Promise<void>;
}

/**
 * What an operation for operators answers, asked again from time to time. What was answered before stays until then.
 * @param everyMs 0: asked for once, and when `load` is called
 */
export function useResource<T>(read: (signal: AbortSignal) => Promise<T>, everyMs = 0, of = ''): Resource<T> {
  const data = useSignal<T | undefined>(undefined);
  const problem = useSignal<Problem | undefined>(undefined);
  const load = async (signal = new AbortController().signal): Promise<void> => {
    try {
      data.value = await read(signal);
      problem.value = undefined;
    } catch (error) {
      if (!isAbort(error)) problem.value = asProblem(error);
    }
  };
  useEffect(() => {
    const ended = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const turn = async (): Promise<void> => {
      // Nobody looks at a tab in the background.
      if (!document.hidden || data.value === undefined) await load(ended.signal);
      // A key that may not do this will not be able to in some seconds.
      const isRefused = problem.value !== undefined && !problem.value.isPassing;
      if (everyMs > 0 && !isRefused && !ended.signal.aborted) timer = setTimeout(() => void turn(), everyMs);
    };
    void turn();
    return () => {
      ended.abort();
      clearTimeout(timer);
    };
  }, [of]);
  return { data: data.value, problem: problem.value, load: () => load() };
}
