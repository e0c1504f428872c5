import { type components } from '../api/types.js';

type Usage = components['schemas']['TenantUsage'];

export type UsageRow = Usage['data'][number];
type By = 'day' | 'owner';

const DAY_MS = 86_400_000;

/** All days of a period, also those without usage: a chart without them would show another course. */
export function daysOf({ from, to }: Pick<Usage, 'from' | 'to'>): string[] {
  const days = [];
  for (let day = Date.parse(from); day <= Date.parse(to); day += DAY_MS)
    days.push(new Date(day).toISOString().slice(0, 10));
  return days;
}

const COLUMNS = ['generations', 'inputTokens', 'outputTokens', 'cachedTokens', 'reasoningTokens'] as const;

/** The table as CSV (RFC 4180). */
export function csvOf(rows: readonly UsageRow[], by: By): string {
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
