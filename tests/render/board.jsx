/*
 * Draws one board: queries go to a Prometheus, frames through Grafana's own field configuration and
 * transformations, and panels are Grafana's own components where npm has them. State timelines, heatmaps and
 * tables live in Grafana's application alone and are drawn here.
 *
 * The address tells what to draw: ?board=FILE&prometheus=URL&from=S&to=S&step=S&window=TEXT&objective=NAME
 * &width=PX. What every panel got is in the page's title.
 */
import React from 'react';
import { createRoot } from 'react-dom/client';
import * as data from '@grafana/data';
import { BarGauge, BigValue, BigValueColorMode, BigValueTextMode, PanelChrome, TimeSeries } from '@grafana/ui';

const asked = new URLSearchParams(location.search);
const from = Number(asked.get('from'));
const to = Number(asked.get('to'));
const width = Number(asked.get('width'));
const theme = data.createTheme({ colors: { mode: 'dark' } });
const timeRange = {
  from: data.dateTime(from * 1000),
  to: data.dateTime(to * 1000),
  raw: { from: data.dateTime(from * 1000), to: data.dateTime(to * 1000) },
};
const ROW_HEIGHT = 38;

// without these registries overrides and transformations do nothing
const EDITORS = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'links', 'mappings', 'thresholds', 'color'];
const editor = (id) => ({
  id,
  path: id,
  name: id,
  process: (value) => value,
  shouldApply: () => true,
  settings: {},
  override: () => null,
  editor: () => null,
  getItemsCount: () => 0,
});
data.standardFieldConfigEditorRegistry.setInit(() => EDITORS.map(editor));
// some stand in the list under two names
const transformers = new Map(Object.values(data.standardTransformers).map((one) => [one?.id, one]));
data.standardTransformersRegistry.setInit(() =>
  [...transformers.values()]
    .filter((one) => one?.id)
    .map((one) => ({ id: one.id, name: one.name ?? one.id, transformation: one, editor: () => null }))
);

function filledIn(expression) {
  return expression
    .replaceAll('$__rate_interval', asked.get('window'))
    .replaceAll('$__range', `${to - from}s`)
    .replaceAll('$objective', asked.get('objective'))
    .replace(/\$(job|model|target)\b/g, '.*');
}

function legend(target, labels) {
  return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '').trim();
}

async function ask(target) {
  const query = encodeURIComponent(filledIn(target.expr));
  const path = target.instant
    ? `query?query=${query}&time=${to}`
    : `query_range?query=${query}&start=${from}&end=${to}&step=${asked.get('step')}`;
  const answer = await (await fetch(`${asked.get('prometheus')}/api/v1/${path}`)).json();
  if (answer.status !== 'success') {
    throw new Error(`${target.expr}: ${answer.error}`);
  }
  const series = answer.data.result;
  return target.format === 'table' ? tableFrames(target, series) : series.map((one) => seriesFrame(target, one));
}

function tableFrames(target, series) {
  if (!series.length) {
    return [];
  }
  const labels = [...new Set(series.flatMap((one) => Object.keys(one.metric)))].filter((name) => name !== '__name__');
  const fields = [
    { name: 'Time', type: 'time', values: series.map((one) => one.value[0] * 1000) },
    ...labels.map((name) => ({ name, type: 'string', values: series.map((one) => one.metric[name]) })),
    { name: `Value #${target.refId}`, type: 'number', values: series.map((one) => Number(one.value[1])) },
  ];
  return [data.toDataFrame({ refId: target.refId, fields })];
}

// a quantile of nothing is not a number, and no point
const number = (text) => (Number.isNaN(Number(text)) ? null : Number(text));

function seriesFrame(target, one) {
  const points = target.instant ? [one.value] : one.values;
  const name = legend(target, one.metric);
  return data.toDataFrame({
    refId: target.refId,
    name,
    fields: [
      { name: 'Time', type: 'time', values: points.map((point) => point[0] * 1000), config: {} },
      {
        name: 'Value',
        type: 'number',
        labels: one.metric,
        values: points.map((point) => number(point[1])),
        config: { displayNameFromDS: name },
      },
    ],
  });
}

async function framesOf(panel) {
  let frames = (await Promise.all(panel.targets.map(ask))).flat();
  if (panel.transformations?.length) {
    frames = await new Promise((done, failed) =>
      data.transformDataFrame(panel.transformations, frames).subscribe({ next: done, error: failed })
    );
  }
  frames.forEach((frame, index) => frame.fields.forEach((field) => (field.state = { seriesIndex: index })));
  frames = data.applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig,
    theme,
    timeZone: 'utc',
    replaceVariables: (text) => text,
    fieldConfigRegistry: data.standardFieldConfigEditorRegistry,
  });
  frames.forEach((frame, index) =>
    frame.fields.forEach((field) => {
      field.state = { ...field.state, seriesIndex: index };
      field.config.custom = {
        axisPlacement: 'auto',
        hideFrom: {},
        scaleDistribution: { type: 'linear' },
        ...panel.fieldConfig.defaults.custom,
      };
    })
  );
  return frames;
}

const newest = (field) => [...field.values].reverse().find((value) => value != null && !Number.isNaN(value)) ?? null;

function Numbers({ fields, nameOf, w, h, panel }) {
  const each = w / fields.length;
  return (
    <div style={{ display: 'flex' }}>
      {fields.map((field, index) => (
        <BigValue
          key={index}
          width={each - 4}
          height={h}
          theme={theme}
          value={{ ...field.display(newest(field)), title: nameOf(field) }}
          colorMode={BigValueColorMode.Background}
          textMode={panel.options.textMode === 'value' ? BigValueTextMode.Value : BigValueTextMode.ValueAndName}
        />
      ))}
    </div>
  );
}

function Bars({ fields, nameOf, w, h }) {
  return fields.map((field, index) => (
    <BarGauge
      key={index}
      width={w}
      height={Math.min(44, h / fields.length - 4)}
      theme={theme}
      // as Grafana does: one scale for all bars
      field={{ ...field.config, ...field.state.range }}
      value={{ ...field.display(newest(field)), title: nameOf(field) }}
      display={field.display}
      orientation="horizontal"
      displayMode="basic"
    />
  ));
}

function Table({ frames, panel }) {
  const hides = (one) => one.properties.some((property) => property.id === 'custom.hidden' && property.value);
  const hidden = panel.fieldConfig.overrides.filter(hides).map((one) => one.matcher.options);
  const fields = frames[0].fields.filter((field) => field.type !== 'time' && !hidden.includes(field.name));
  const title = (field) => data.getFieldDisplayName(field, frames[0], frames);
  return (
    <table>
      <thead><tr>{fields.map((field) => <th key={title(field)}>{title(field)}</th>)}</tr></thead>
      <tbody>
        {fields[0].values.map((_, row) => (
          <tr key={row}>
            {fields.map((field) => {
              const shown = field.display(field.values[row]);
              const color = field.type === 'number' ? shown.color : undefined;
              return <td key={title(field)} style={{ color }}>{data.formattedValueToString(shown)}</td>;
            })}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function States({ fields, frames, nameOf, w, h }) {
  const left = Math.min(320, w / 3);
  const each = Math.min(34, h / fields.length);
  const x = (ms) => left + ((ms / 1000 - from) / (to - from)) * (w - left);
  const step = Number(asked.get('step'));
  return (
    <svg width={w} height={h}>
      {fields.map((field, row) => {
        const times = frames.find((frame) => frame.fields.includes(field)).fields[0].values;
        return (
          <g key={row}>
            <text x={4} y={(row + 0.65) * each} fill={theme.colors.text.primary} fontSize={Math.min(12, each - 2)}>
              {nameOf(field)}
            </text>
            {field.values.map((value, index) => (
              <rect
                key={index}
                x={x(times[index])}
                y={row * each + 2}
                width={x(times[index] + step * 1000) - x(times[index]) + 0.5}
                height={each - 4}
                fill={field.display(value).color}
              />
            ))}
          </g>
        );
      })}
    </svg>
  );
}

function Heatmap({ fields, frames, nameOf, panel, w, h }) {
  const left = 64;
  const bounds = fields
    .map((field) => ({ field, le: nameOf(field) === '+Inf' ? Infinity : Number(nameOf(field)) }))
    .sort((a, b) => a.le - b.le);
  const counts = bounds.map(({ field }, row) =>
    field.values.map((value, index) => Math.max(0, value - (row ? bounds[row - 1].field.values[index] ?? 0 : 0)))
  );
  const used = counts.map((row) => row.some((count) => count > 0));
  const first = Math.max(0, used.indexOf(true) - 1);
  const last = Math.min(bounds.length - 1, used.lastIndexOf(true) + 1);
  const most = Math.max(...counts.flat());
  const cell = { w: (w - left) / frames[0].length, h: h / (last - first + 1) };
  const format = data.getValueFormat(panel.options.yAxis.unit);
  return (
    <svg width={w} height={h}>
      {bounds.slice(first, last + 1).map(({ le }, row) => (
        <g key={row}>
          <text x={2} y={h - row * cell.h - 4} fontSize={10} fill={theme.colors.text.secondary}>
            {le === Infinity ? '+Inf' : data.formattedValueToString(format(le))}
          </text>
          {counts[first + row].map((count, index) =>
            count > 0 ? (
              <rect
                key={index}
                x={left + index * cell.w}
                y={h - (row + 1) * cell.h}
                width={cell.w + 0.5}
                height={cell.h - 1}
                fill={theme.visualization.getColorByName('blue')}
                opacity={0.15 + 0.85 * Math.sqrt(count / most)}
              />
            ) : null
          )}
        </g>
      ))}
    </svg>
  );
}

function Body({ panel, frames, w, h }) {
  const fields = frames.flatMap((frame) => frame.fields.filter((field) => field.type === 'number'));
  const nameOf = (field) => data.getFieldDisplayName(field, frames.find((one) => one.fields.includes(field)), frames);
  const given = { panel, frames, fields, nameOf, w, h };
  if (!fields.length) {
    return <div style={{ padding: 8, opacity: 0.7 }}>{panel.fieldConfig.defaults.noValue}</div>;
  }
  switch (panel.type) {
    case 'stat':
      return <Numbers {...given} />;
    case 'bargauge':
      return <Bars {...given} />;
    case 'table':
      return <Table {...given} />;
    case 'state-timeline':
      return <States {...given} />;
    case 'heatmap':
      return <Heatmap {...given} />;
    default:
      return (
        <TimeSeries
          frames={frames}
          width={w}
          height={h}
          timeRange={timeRange}
          timeZone="utc"
          structureRev={1}
          legend={panel.options.legend}
          options={{}}
        />
      );
  }
}

function Drawn({ panel, frames }) {
  const column = width / 24;
  const { x, y, w, h } = panel.gridPos;
  const place = {
    position: 'absolute',
    left: x * column,
    top: y * ROW_HEIGHT,
    width: w * column - 8,
    height: h * ROW_HEIGHT - 8,
  };
  if (panel.type === 'row') {
    const more = panel.collapsed ? ` (${panel.panels.length} panels)` : '';
    return <div style={place}><h2>{panel.collapsed ? '▸' : '▾'} {panel.title}{more}</h2></div>;
  }
  return (
    <div style={place}>
      <PanelChrome title={panel.title} width={place.width} height={place.height}>
        {(innerWidth, innerHeight) => <Body panel={panel} frames={frames} w={innerWidth} h={innerHeight} />}
      </PanelChrome>
    </div>
  );
}

async function main() {
  const board = await (await fetch(asked.get('board'))).json();
  const report = [];
  const drawn = [];
  for (const panel of board.panels) {
    if (panel.type === 'row') {
      drawn.push([panel, []]);
      continue;
    }
    try {
      const frames = await framesOf(panel);
      const legends = panel.targets.map((target) => target.legendFormat);
      report.push({ title: panel.title, type: panel.type, legends, frames: frames.length });
      drawn.push([panel, frames]);
    } catch (problem) {
      report.push({ title: panel.title, type: panel.type, legends: [], error: problem.message });
      drawn.push([panel, []]);
    }
  }
  const height = Math.max(...board.panels.map((panel) => panel.gridPos.y + panel.gridPos.h)) * ROW_HEIGHT;
  createRoot(document.getElementById('root')).render(
    <data.ThemeContext.Provider value={theme}>
      <div style={{ position: 'relative', width, height, background: theme.colors.background.canvas }}>
        {drawn.map(([panel, frames]) => <Drawn key={panel.id} panel={panel} frames={frames} />)}
      </div>
    </data.ThemeContext.Provider>
  );
  setTimeout(() => {
    document.title = JSON.stringify({ height, report });
  }, 2000);
}

main();
