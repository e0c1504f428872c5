import { useState } from 'preact/hooks';
import { numberOf, visible } from './format.js';

/** More than this in one piece takes a browser longer to lay out than anybody wants to wait. */
const SHOWN = 20_000;

/**
 * A text of whoever wrote it, as text alone: nothing in it is read as markup or made a link. Its direction is its own, and
 * ends with it.
 */
export function Text({ value, class: name = '' }: { value: string; class?: string }) {
  const [shown, setShown] = useState(SHOWN);
  const rest = value.length - shown;
  return (
    <div class={`text ${name}`} dir="auto">
      {visible(rest > 0 ? value.slice(0, shown).toWellFormed() : value)}
      {rest > 0 && (
        <button
          type="button"
          class="quiet"
          onClick={() => {
            setShown(shown + SHOWN);
          }}
        >
          … {numberOf(rest)} more characters
        </button>
      )}
    </div>
  );
}

/** Anything as JSON, to be read. */
export const Json = ({ value, label }: { value: unknown; label: string }) => (
  <pre class="json" tabIndex={0} role="region" aria-label={label} dir="auto">
    {visible(cut(JSON.stringify(value, null, 2)))}
  </pre>
);

const cut = (text: string): string =>
  text.length > SHOWN ? `${text.slice(0, SHOWN)}\n… ${numberOf(text.length - SHOWN)} more characters` : text;
