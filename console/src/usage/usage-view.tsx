import { useEffect, useMemo } from 'preact/hooks';
import { type Usage } from '../api/client.js';
import { adjust, type Route } from '../router.js';
import { download } from '../ui/download.js';
import { numberOf, visible } from '../ui/format.js';
import { Notice } from '../ui/notice.js';
import { Table } from '../ui/table.js';
import { Bars } from './bars.js';
import { csvOf, daysOf, type UsageRow } from './rows.js';
import { type UsageAsked, UsageStore } from './usage-store.js';

const PERIODS = [7, 30, 90, 365] as const;
const MOST_BARS = 40;

export function UsageView({ query }: Route) {
  const by = query.get('by') === 'owner' ? 'owner' : 'day';
  const days = PERIODS.find((one) => String(one) === query.get('days')) ?? 30;
  const owner = query.get('owner') ?? '';
  const store = useMemo(() => new UsageStore({ by, days, owner }), [by, days, owner]);
  useEffect(() => store.start(), [store]);
  const usage = store.usage.value;
  return (
    <div class="view">
      <header class="bar">
        <h1 tabIndex={-1}>Usage</h1>
        <div class="filters">
          <select
            aria-label="Period"
            value={days}
            onChange={(event) => {
              adjust(['usage'], { days: event.currentTarget.value });
            }}
          >
            {PERIODS.map((one) => (
              <option key={one} value={one}>
                {one} days
              </option>
            ))}
          </select>
          <select
            aria-label="By"
            value={by}
            onChange={(event) => {
              adjust(['usage'], { by: event.currentTarget.value });
            }}
          >
            <option value="day">by day</option>
            <option value="owner">by owner</option>
          </select>
          <input
            type="search"
            aria-label="Of the owner"
            placeholder="Owner"
            defaultValue={owner}
            onChange={(event) => {
              adjust(['usage'], { owner: event.currentTarget.value });
            }}
          />
        </div>
        {usage && (
          <button
            type="button"
            onClick={() => {
              download(`usage-${usage.from}-${usage.to}-by-${by}.csv`, 'text/csv', csvOf(usage.data, by));
            }}
          >
            CSV
          </button>
        )}
      </header>
      {store.problem.value && <Notice problem={store.problem.value} retry={() => void store.load()} />}
      {usage && <Found usage={usage} by={by} />}
    </div>
  );
}

function Found({ usage, by }: { usage: Usage; by: UsageAsked['by'] }) {
  const models = [...new Set(usage.data.map(({ model }) => model))];
  const labels = by === 'day' ? daysOf(usage) : [...new Set(usage.data.map(nameOf))].slice(0, MOST_BARS);
  const sizes = new Map<string, number>();
  for (const row of usage.data) {
    const key = JSON.stringify([by === 'day' ? row.day : nameOf(row), row.model]);
    sizes.set(key, (sizes.get(key) ?? 0) + row.inputTokens + row.outputTokens);
  }
  const bars = labels.map((label) => ({
    label,
    parts: models.map((model) => sizes.get(JSON.stringify([label, model])) ?? 0),
  }));
  const total = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  return (
    <div class="scrolls" role="region" aria-label="Usage" tabIndex={0}>
      <p>
        {numberOf(total)} tokens from {usage.from} to {usage.to}, days in UTC
      </p>
      {bars.length > 0 && (
        <Bars
          title={`Tokens by ${by} and model, from ${usage.from} to ${usage.to}; the table has the figures`}
          series={models}
          bars={bars}
        />
      )}
      <Table
        of="usage"
        columns={[
          by === 'day' ? 'Day' : 'Owner',
          'Model',
          ...['Generations', 'In', 'Out', 'Cached', 'Thoughts'].map((figure) => ({ figure })),
        ]}
      >
        {usage.data.map((row) => (
          <tr key={`${row.day ?? ''} ${row.owner ?? ''} ${row.model}`}>
            <th scope="row" dir="auto">
              {by === 'day' ? row.day : nameOf(row)}
            </th>
            <td>{visible(row.model)}</td>
            {[row.generations, row.inputTokens, row.outputTokens, row.cachedTokens, row.reasoningTokens].map(
              (value, index) => (
                <td key={index} class="figure">
                  {numberOf(value)}
                </td>
              ),
            )}
          </tr>
        ))}
      </Table>
      {usage.data.length === 0 && <p class="empty">No tokens were used in this time.</p>}
    </div>
  );
}

const nameOf = ({ owner }: UsageRow): string => visible(owner ?? 'nobody');
