import { signal } from '@preact/signals';
import { call, type Usage } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

export interface UsageAsked {
  readonly by: 'day' | 'owner';
  readonly days: number;
  readonly owner: string;
}

const DAY_MS = 86_400_000;

/** What the sessions of the tenant have used. */
export class UsageStore {
  readonly usage = signal<Usage | undefined>(undefined);
  readonly problem = signal<Problem | undefined>(undefined);
  private readonly ended = new AbortController();

  constructor(private readonly asked: UsageAsked) {}

  start(): () => void {
    void this.load();
    return () => {
      this.ended.abort();
    };
  }

  async load(): Promise<void> {
    const { by, days, owner } = this.asked;
    const from = new Date(Date.now() - (days - 1) * DAY_MS).toISOString().slice(0, 10);
    try {
      this.usage.value = await call('get', '/v1/usage', {
        query: { by, from, ...(owner !== '' && { owner }) },
        signal: this.ended.signal,
      });
      this.problem.value = undefined;
    } catch (error) {
      if (!isAbort(error)) this.problem.value = asProblem(error);
    }
  }
}
