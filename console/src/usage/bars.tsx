import { numberOf } from '../ui/format.js';

export interface Bar {
  readonly label: string;
  /** Sizes of its parts, in the order of the series. */
  readonly parts: readonly number[];
}

const HEIGHT = 180;
const STEP = 24;
const GAP = 4;
/** There are so many colours; models beyond them share the last one. */
const COLOURS = 6;

/** Stacked bars. Who does not see them has the table beneath, and the title says what they show. */
export function Bars({
  title,
  series,
  bars,
}: {
  title: string;
  series: readonly string[];
  bars: readonly Bar[];
}) {
  const most = Math.max(...bars.map(({ parts }) => sum(parts)), 1);
  const width = Math.max(bars.length * STEP, STEP);
  return (
    <figure class="bars">
      <div class="legend">
        {series.map((name, index) => (
          <span key={name}>
            <span class={`swatch s${Math.min(index, COLOURS - 1)}`} /> {name}
          </span>
        ))}
      </div>
      <svg viewBox={`0 0 ${width} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={title}>
        {bars.map(({ label, parts }, index) => {
          let top = HEIGHT;
          return (
            <g key={label}>
              <title>{`${label}: ${numberOf(sum(parts))} tokens`}</title>
              {/* What is pointed at is the whole column, also where the bar is low. */}
              <rect class="column" x={index * STEP} y={0} width={STEP} height={HEIGHT} />
              {parts.map((part, which) => {
                const height = (part / most) * HEIGHT;
                top -= height;
                return (
                  <rect
                    key={which}
                    class={`s${Math.min(which, COLOURS - 1)}`}
                    x={index * STEP + GAP / 2}
                    y={top}
                    width={STEP - GAP}
                    height={height}
                  />
                );
              })}
            </g>
          );
        })}
      </svg>
      <figcaption>
        <span>{bars[0]?.label}</span>
        <span>at most {numberOf(most)} tokens</span>
        <span>{bars.at(-1)?.label}</span>
      </figcaption>
    </figure>
  );
}

const sum = (parts: readonly number[]): number => parts.reduce((total, part) => total + part, 0);
