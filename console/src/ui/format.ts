const TIME = new Intl.DateTimeFormat(undefined, {
  year: 'numeric',
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
});
const NUMBER = new Intl.NumberFormat();
const RELATIVE = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto', style: 'short' });
const STEPS = [
  ['day', 86_400_000],
  ['hour', 3_600_000],
  ['minute', 60_000],
] as const;

export const timeOf = (text: string): string => TIME.format(new Date(text));
export const numberOf = (value: number): string => NUMBER.format(value);
/** e.g. `1 message`, `2 messages`. */
export const countOf = (value: number, what: string): string =>
  `${numberOf(value)} ${what}${value === 1 ? '' : 's'}`;

/** e.g. `5 min. ago`; times that are more than a month away as they are. */
export function agoOf(text: string, now = Date.now()): string {
  const ms = Date.parse(text) - now;
  if (Math.abs(ms) > 30 * STEPS[0][1]) return TIME.format(new Date(text));
  for (const [unit, length] of STEPS)
    if (Math.abs(ms) >= length) return RELATIVE.format(Math.round(ms / length), unit);
  return RELATIVE.format(Math.round(ms / 1000), 'second');
}

export const durationOf = (ms: number): string =>
  ms < 1000
    ? `${ms} ms`
    : ms < 120_000
      ? `${numberOf(ms / 1000)} s`
      : ms < 7_200_000
        ? `${numberOf(Math.round(ms / 60_000))} min`
        : ms < 172_800_000
          ? `${numberOf(Math.round(ms / 3_600_000))} h`
          : `${numberOf(Math.round(ms / 86_400_000))} d`;

/** Control characters have no look of their own and could hide what is said, so each is shown by its picture. */
export const visible = (text: string): string =>
  // eslint-disable-next-line no-control-regex
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (one) =>
    String.fromCharCode(one === '\u007f' ? 0x2421 : 0x2400 + one.charCodeAt(0)),
  );
