import { type ComponentChildren } from 'preact';

/** The name of a column; one of figures stands to the right, as they do. */
type Column = string | { readonly figure: string };

/**
 * A table that is scrolled sideways where it is wider than the page, also by keyboard.
 * @param props.of what it is called: a table of that
 * @param props.children its rows
 */
export function Table(props: {
  of: string;
  caption?: ComponentChildren;
  columns: readonly Column[];
  children: ComponentChildren;
}) {
  return (
    <div class="wide" role="region" aria-label={`Table of ${props.of}`} tabIndex={0}>
      <table>
        {props.caption && <caption>{props.caption}</caption>}
        <thead>
          <tr>
            {props.columns.map((column) => {
              const isFigure = typeof column !== 'string';
              const name = isFigure ? column.figure : column;
              return (
                <th key={name} scope="col" class={isFigure ? 'figure' : undefined}>
                  {name}
                </th>
              );
            })}
          </tr>
        </thead>
        <tbody>{props.children}</tbody>
      </table>
    </div>
  );
}
