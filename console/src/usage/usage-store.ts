import { signal } from '@preact/signals';
import { call, type Usage } from '../api/client.js';
import { asProblem, isAbort, type Problem } from '../api/problem.js';

export type UsageRow = Usage['data'][number];
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

/** All days of a period, also those without usage: a chart without them would show another course. */
export function daysOf({ from, to }: Pick<Usage, 'from' | 'to'>): string[] {
  const days = [];
  for (let day = Date.parse(from); day <= Date.parse(to); day += DAY_MS)
    days.push(new Date(day).toISOString().slice(0, 10));
  return days;
}

const COLUMNS = ['generations', 'inputTokens', 'outputTokens', 'cachedTokens', 'reasoningTokens'] as const;

/** The table as CSV (RFC 4180). */
export function csvOf(rows: readonly UsageRow[], by: UsageAsked['by']): string {
  const lines = rows.map((row) => [row[by] ?? '', row.model, ...COLUMNS.map((name) => row[name])].map(cell));
  return [[by, 'model', ...COLUMNS], ...lines].map((line) => `${line.join(',')}\r\n`).join('');
}

/** Spreadsheets take a text that begins so for a formula, and owners are named by others. */
const FORMULA = /^[=+\-@\t\r]/;

function cell(value: string | number): string {
  if (typeof value === 'number') return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
